"""A pool of runs: `python -m crgan.sweep PRESET --seeds 0:10 --set cr_weight=0.5,1,2 --out DIR`.

Every run is a process `python -m crgan.train` with flags of its own, in a folder of its own. The same command again
skips what is finished and continues what was begun.
"""

import hashlib
import json
import os
import shlex
import signal
import sys
import time
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import tyro

from . import cli
from .config import PRESETS, Config
from .errors import InputError, check_name
from .files import write_json

SCORE = "factor_vae"
STATES = ("running", "failed", "done", "waiting")
MAX_ROWS = 40  # of the live table
TAIL = 1 << 16  # bytes at the end of metrics.jsonl that hold its last score
Ends = Generator[tuple[str, int | Exception] | None, None, None]
"""The name of a run that has ended and its exit code; None a few times a second."""


@dataclass
class Run:
    """One run of a sweep, and what its files say of it."""

    name: str
    arguments: list[str]  # of python
    cfg: Config
    out: Path
    state: str = "waiting"
    step: int = 0
    score: float | None = None

    @property
    def log(self) -> Path:
        return self.out.parent / ".sweep" / f"{self.name}.log"

    def finished(self) -> bool:
        """Return whether its folder holds the last step of its configuration."""
        from . import checkpoint

        with suppress(InputError):  # if something is wrong there, the run itself will say it
            before, _ = checkpoint.read_config(self.out)
            same = replace(self.cfg, threads=self.cfg.threads or before.threads)
            same = replace(same, precision=before.precision) if same.precision == "auto" else same
            folder = checkpoint.latest(self.out)
            return before == same and folder is not None and folder.name == f"step-{self.cfg.steps:09d}"
        return False

    def look(self) -> None:
        """Read the last step and score from metrics.jsonl."""
        path = self.out / "metrics.jsonl"
        for line in path.read_bytes()[-TAIL:].split(b"\n") if path.exists() else ():
            with suppress(ValueError, KeyError, TypeError):  # half a line, or damaged by a power cut
                values = json.loads(line)
                self.step, self.score = values["step"], values.get(SCORE, self.score)


# ---------------------------------------------------------------- the grid


def expand(
    preset: str,
    out: Path,
    settings: Sequence[str] = (),
    seeds: str = "",
    listed: Path | None = None,
    flags: Sequence[str] = (),
) -> list[Run]:
    """Return the runs of a grid: rows of the list x values of each setting x seeds.

    `settings` are strings "field=value,value"; `seeds` is "first:end" or "seed,seed"; `listed` holds a JSON object of
    fields per line, or an array of them; `flags` of crgan.train apply to every run. A run is named after its settings
    and its seed. Raises InputError for an unknown field, a field given twice and a bad value.
    """
    from . import data

    axes: dict[str, Sequence[Any]] = {}
    for setting in [*settings, *([f"seed={_seeds(seeds)}"] if seeds else [])]:
        field, _, values = setting.partition("=")
        if (field := field.replace("-", "_")) in axes:  # as the flags of crgan.train are written
            raise InputError(f"{field} is set twice; give its values in one --set {field}=value,value")
        axes[field] = values.split(",")
    rows = _rows(listed) if listed else [{}]
    if twice := sorted({field for row in rows for field in row} & set(axes)):
        raise InputError(f"{twice[0]} is given by {listed} and by a flag; give it once")
    for field in {*axes, *(field for row in rows for field in row)}:
        check_name("field of the configuration", field, [f.name for f in fields(Config)])
    runs: dict[str, Run] = {}
    for row, values in product(rows, product(*axes.values())):
        chosen = row | dict(zip(axes, values))
        own = [*flags, *(f"--{field.replace('_', '-')}={value}" for field, value in chosen.items())]
        cfg = parse_run([preset, *own])
        check_name("data set", cfg.data, data.NAMES)
        named = [field for field in chosen if field != "seed"] + ["seed"]
        name = ",".join(f"{field}={str(getattr(cfg, field)).removesuffix('.0')}" for field in named).replace("/", "_")
        if len(name.encode()) >= 200:  # file systems take 255 bytes
            name = f"{name.encode()[:100].decode(errors='ignore')},{hashlib.sha256(name.encode()).hexdigest()[:16]}"
        if name in runs:
            raise InputError(f"the run {name} is in this sweep twice; give each setting once")
        if cfg.root:
            cfg = replace(cfg, root=str(Path(cfg.root).expanduser().resolve()))
            own.append(f"--root={cfg.root}")  # of two, the last counts
        folder = out.resolve() / name
        runs[name] = Run(name, ["-m", "crgan.train", preset, *own, "--out", str(folder)], cfg, folder)
    return list(runs.values())


def parse_run(args: Sequence[str]) -> Config:
    """Return the configuration that crgan.train makes of a preset and flags; a bad flag ends the process."""
    from .train import parse

    return parse([*args])[1]


def _seeds(text: str) -> str:
    """Return the seeds that "first:end" or "seed,seed" stand for, with commas."""
    first, colon, end = text.partition(":")
    try:
        seeds = [*range(int(first), int(end))] if colon else [int(seed) for seed in text.split(",")]
        if not seeds:
            raise ValueError
    except ValueError:
        raise InputError(f"--seeds is {text!r}; expected first:end, as in 0:10, or a list, as in 0,3,7") from None
    return ",".join(map(str, seeds))


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        text = path.expanduser().read_text().strip()
        rows = json.loads(text if text.startswith("[") else f"[{','.join(filter(str.strip, text.splitlines()))}]")
        if not rows:
            raise ValueError("it is empty")
        return [{field.replace("-", "_"): value for field, value in row.items()} for row in rows]
    except (ValueError, AttributeError) as error:
        raise InputError(f"{path} is no list of runs ({error}); expected a JSON object of fields per line") from None


# ---------------------------------------------------------------- running


def run_here(runs: Sequence[Run], jobs: int, threads: int, gpus: int) -> Ends:
    """Train `runs`, `jobs` at once, each with `threads` CPU threads and, where there are any, one of the `gpus`.

    When it is closed or interrupted, the runs save and end.
    """
    from .cluster import start_python

    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
    waiting, active = list(runs), dict[int, tuple[Run, Any]]()
    try:
        while waiting or active:
            for slot in range(jobs):
                if slot not in active and waiting:
                    run, environment = waiting.pop(0), {"OMP_NUM_THREADS": str(threads)}
                    if gpus:
                        environment["CUDA_VISIBLE_DEVICES"] = visible[slot % gpus]
                    active[slot] = run, start_python(run.arguments, run.log, environment)
            yield None
            time.sleep(0.2)
            for slot, (run, process) in list(active.items()):
                if (code := process.poll()) is not None:
                    del active[slot]
                    yield run.name, ChildProcessError(f"its process was ended by signal {-code}") if code < 0 else code
    finally:
        for _, process in active.values():
            process.terminate()
        for _, process in active.values():
            process.wait()


def watch(runs: Sequence[Run], ends: Ends) -> None:
    """Note how the runs do until all have ended, in a table on a terminal and in a line a minute elsewhere."""
    from rich.live import Live

    looked = printed = time.time()
    begun = looked - 1  # the clock of a file system may be behind
    named = {run.name: run for run in runs}
    with closing(ends), Live(_table(runs), auto_refresh=False) as live:
        for ended in ends:
            if ended is not None:
                run, result = named[ended[0]], ended[1]
                run.look()
                run.state = "failed" if result else "done"
                if isinstance(result, Exception):
                    with run.log.open("a") as log:
                        log.write(f"{result}\n")
            elif time.time() > looked + 1:
                looked = time.time()
                for run in runs:
                    if run.state == "waiting" and run.log.exists() and run.log.stat().st_mtime >= begun:
                        run.state = "running"  # wherever it does
                    if run.state == "running":
                        run.look()
                live.update(_table(runs), refresh=live.console.is_terminal)
                if not live.console.is_terminal and looked > printed + 60:
                    printed = looked
                    print(_table(runs).caption, flush=True)
        live.update(_table(runs), refresh=True)
    if not live.console.is_terminal:
        print()  # there the last table ends without one


def _table(runs: Sequence[Run]) -> Any:
    from rich.table import Column, Table

    counts = Counter(run.state for run in runs)
    summary = f"{len(runs)} runs: " + ", ".join(f"{counts[state]} {state}" for state in STATES)
    table = Table(Column("run", overflow="fold"), "state", "step", SCORE, caption=summary, caption_justify="left")
    for run in sorted(runs, key=lambda run: STATES.index(run.state))[:MAX_ROWS]:
        score = "" if run.score is None else f"{run.score:.3f}"
        table.add_row(run.name, run.state, f"{run.step:,} / {run.cfg.steps:,}", score)
    return table


# ---------------------------------------------------------------- the command


def sweep(
    preset: str = "quick",
    /,
    *,
    out: Path,
    seeds: str = "",
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = (),
    list: Path | None = None,
    jobs: int | None = None,
    threads: int = 1,
    per_gpu: int = 1,
    device: str = "auto",
    ray: str | None = None,
    dry_run: bool = False,
    flags: Annotated[tuple[str, ...], tyro.conf.Suppress] = (),
) -> None:
    """Train a pool of models. Every flag of crgan.train is accepted and applies to all runs.

    Args:
        preset: Preset of crgan.train; it comes first.
        out: Folder of the sweep, in which each run has a folder.
        seeds: Seeds, as first:end or as a list with commas; default: the preset's.
        set: field=value,value: vary a field of the configuration. Repeat the flag for a grid.
        list: File with a JSON object of fields per line, for settings that form no grid.
        jobs: Runs at once on this machine; default: one per `threads` cores, or `per_gpu` for each GPU.
        threads: CPU threads of a run. The last bits of a result depend on it.
        per_gpu: Runs that share a GPU.
        device: auto, cpu or cuda.
        ray: Address of a Ray cluster that sees `out` on shared storage, or auto; default: this machine alone.
        dry_run: Print the command of each run and exit.
        flags: Of crgan.train, for all runs.
    """
    check_name("preset", preset, PRESETS)
    cli.at_least(1, threads=threads, per_gpu=per_gpu, jobs=jobs)
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"--device is {device!r}; expected auto, cpu or cuda: a sweep takes all GPUs it sees")
    out = Path(out).expanduser()
    runs = expand(preset, out, set, seeds, list, [*flags, f"--threads={threads}", f"--device={device}"])
    if dry_run:
        for run in runs:
            print(shlex.join(["python", *run.arguments]))
        return
    if (out / "config.json").exists():
        raise InputError(f"{out} is a run folder, not one of a sweep; give another --out")
    for run in runs:
        run.look()
        run.state = "done" if run.finished() else "waiting"
    ends = _start([run for run in runs if run.state == "waiting"], jobs, threads, per_gpu, device, ray)
    (out / ".sweep").mkdir(parents=True, exist_ok=True)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        watch(runs, ends)
    except KeyboardInterrupt:
        for run in runs:
            run.state = "stopped" if run.state == "running" else run.state
        print(f"\nstopped; what had begun in {out} was saved and the same command continues it", file=sys.stderr)
        sys.exit(130)
    finally:
        signal.signal(signal.SIGTERM, before)
        rows = [{"run": run.name, "state": run.state, "step": run.step, SCORE: run.score} for run in runs]
        write_json(out / ".sweep" / "sweep.json", rows)
    failed = [run for run in runs if run.state == "failed"]
    for run in failed:
        lines = run.log.read_text(errors="replace").strip().splitlines()
        print(f"failed: {run.name}: {lines[-1] if lines else 'no word'} (log: {run.log})", file=sys.stderr)
    if len(failed) < len(runs):
        folder = shlex.quote(str(out))
        print(f"{len(runs) - len(failed)} runs in {folder}; `crgan select {folder}/* --out choice` chooses among them")
    if failed:
        sys.exit(1)


def _start(runs: Sequence[Run], jobs: int | None, threads: int, per_gpu: int, device: str, ray: str | None) -> Ends:
    """Check data and devices and return what trains `runs` as it is iterated over."""
    import torch

    from . import cluster, data

    if ray:
        gpus = 1 / per_gpu if cluster.connect(ray) and device != "cpu" else 0
        return cluster.scatter(
            cluster.run_python, {run.name: (run.arguments, str(run.log)) for run in runs}, threads, gpus
        )
    for name, root in {(run.cfg.data, run.cfg.root) for run in runs}:
        data.load(name, root)  # what is wrong with it would stop every run
    gpus = torch.cuda.device_count() if device != "cpu" else 0
    if device == "cuda" and not gpus:
        raise InputError("--device is 'cuda' but torch sees no CUDA device; use --device cpu")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return run_here(runs, jobs or per_gpu * gpus or max(1, cores // threads), threads, gpus)


def main(args: Sequence[str] | None = None) -> None:
    cli.run("crgan.sweep", sweep, args, unknown="flags")


if __name__ == "__main__":
    main()
