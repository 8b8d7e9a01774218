"""A pool of runs: `python -m crgan.sweep PRESET --seeds 0:10 --set cr_weight=0.5,1,2 --out DIR`.

Every run is `python -m crgan.train` with flags of its own, in a folder of its own; what is finished is skipped and
what was begun goes on, so the same command again completes a sweep.
"""

import ctypes
import hashlib
import io
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, fields, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import torch
import tyro
from rich.console import Group
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text

from . import checkpoint, cli, cluster, train
from . import data as datasets
from .config import PRESETS, Config
from .errors import InputError
from .files import write_json

SHOWN = 40  # rows of the live table
SCORE = "factor_vae"
PR_SET_PDEATHSIG = 1  # of linux/prctl.h


@dataclass
class Run:
    """One run of a sweep, and what its files tell of it."""

    name: str
    flags: list[str]  # of crgan.train, --out and --device not among them
    cfg: Config
    out: Path
    state: str = "waiting"
    step: int = 0
    score: float | None = None
    started: tuple[float, int] | None = None  # time and step when it was first seen to move
    read: int = 0  # bytes of metrics.jsonl

    @property
    def log(self) -> Path:
        return self.out.parent / ".sweep" / f"{self.name}.log"

    def finished(self) -> bool:
        try:
            before, _ = checkpoint.read_config(self.out)
        except InputError:  # if something is wrong there, the run itself will say it
            return False
        folder = checkpoint.latest(self.out)
        same = replace(self.cfg, precision=before.precision) if self.cfg.precision == "auto" else self.cfg
        return before == same and folder is not None and folder.name == f"step-{self.cfg.steps:09d}"

    def look(self) -> None:
        """Reads what was written since the last look."""
        try:
            with (self.out / "metrics.jsonl").open("rb") as file:
                if file.seek(0, 2) < self.read:  # cut back to the checkpoint that the run goes on from
                    self.read = 0
                file.seek(self.read)
                lines = file.read().split(b"\n")[:-1]
        except OSError:
            return
        self.read += sum(len(line) + 1 for line in lines)
        for line in lines:
            try:
                values = json.loads(line)
            except ValueError:  # damaged by a power cut; the run will cut it off
                continue
            self.step, self.score = values["step"], values.get(SCORE, self.score)
        if lines and self.started is None:
            self.started = time.monotonic(), self.step

    def rate(self) -> float | None:
        """Steps per second since it was first seen to move."""
        if self.started is None or self.step <= self.started[1]:
            return None
        return (self.step - self.started[1]) / (time.monotonic() - self.started[0])


def expand(preset: str, out: Path, settings: Sequence[str], seeds: str = "", listed: Path | None = None) -> list[Run]:
    """The runs of a grid: rows of the list x values of each setting x seeds.

    `settings` are texts "field=value,value"; `seeds` is "first:end" or "seed,seed"; `listed` holds a JSON object of
    fields per line, or an array of such. Raises InputError for what is no field, no value of it, or given twice.
    """
    axes: dict[str, list[Any]] = {}
    for setting in settings:
        field, _, values = setting.partition("=")
        field = field.replace("-", "_")  # as the flags of crgan.train have it
        if field in axes:
            raise InputError(f"{field} is set twice; give its values in one --set {field}=value,value")
        axes[field] = [_value(field, text) for text in values.split(",")]
    rows = _rows(listed) if listed else [{}]
    if seeds:
        if "seed" in axes:
            raise InputError("seeds are given by --set seed= and by --seeds; give them once")
        axes["seed"] = _seeds(seeds)
    if twice := sorted({field for row in rows for field in row} & set(axes)):
        raise InputError(f"{twice[0]} is given by {listed} and by a flag; give it once")
    if not any("seed" in row for row in rows):
        axes.setdefault("seed", [PRESETS[preset].seed])
    runs: dict[str, Run] = {}
    for row, values in product(rows, product(*axes.values())):
        chosen = row | dict(zip(axes, values))
        chosen["seed"] = chosen.pop("seed", PRESETS[preset].seed)  # last in the name
        name = _folder(",".join(f"{field}={value}" for field, value in chosen.items()))
        if name in runs:
            raise InputError(f"the run {name} is in this sweep twice; give each setting once")
        if chosen.get("root"):
            chosen["root"] = str(Path(chosen["root"]).resolve())  # a worker has a working folder of its own
        if (data := chosen.get("data")) and data not in datasets.NAMES:
            raise InputError(f"data={data} is no data set; expected one of {', '.join(datasets.NAMES)}")
        flags = [preset, *(part for field, value in chosen.items() for part in _flag(field, value))]
        runs[name] = Run(name, flags, replace(PRESETS[preset], **chosen), out.resolve() / name)
    return list(runs.values())


def _folder(name: str) -> str:
    """A name that file systems take, which allow 255 bytes."""
    short = name.replace("/", "_")
    return short if len(short.encode()) < 200 else f"{short[:100]},{hashlib.sha256(name.encode()).hexdigest()[:16]}"


@cache
def _value(field: str, text: str) -> Any:
    """`text` as crgan.train would read it for that field."""
    hints = get_type_hints(Config)
    if field not in {f.name for f in fields(Config)}:
        raise InputError(f"{field!r} is no field of the configuration; expected one of {', '.join(hints)}")
    try:
        with redirect_stderr(io.StringIO()):
            kind: Any = tyro.conf.Positional[hints[field]]  # type: ignore[valid-type,misc]
            return tyro.cli(kind, args=[text])
    except SystemExit:
        raise InputError(f"{field}={text}: {text!r} is no value of {field}; see python -m crgan.train --help") from None


def _flag(field: str, value: Any) -> list[str]:
    option = field.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{option}" if value else f"--no-{option}"]
    return [f"--{option}", str(value)]


def _seeds(text: str) -> list[int]:
    try:
        first, colon, end = text.partition(":")
        seeds = list(range(int(first), int(end))) if colon else [int(seed) for seed in text.split(",")]
    except ValueError:
        seeds = []
    if not seeds:
        raise InputError(f"--seeds is {text!r}; expected first:end, as in 0:10, or a list, as in 0,3,7")
    return seeds


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        text = path.read_text().strip()
        rows = json.loads(text if text.startswith("[") else f"[{','.join(filter(str.strip, text.splitlines()))}]")
        if not rows:
            raise ValueError("it is empty")
        return [{field: _value(field, str(value)) for field, value in row.items()} for row in rows]
    except (ValueError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is no list of runs ({error}); expected a JSON object of fields per line") from None


# ---------------------------------------------------------------- where they run


def run_here(
    runs: Sequence[Run], device: str, checkpoint_every: int, jobs: int, parallel: int, threads: int, gpus: int
) -> Generator[None, None, None]:
    """Trains `runs` in `jobs` processes at once, each with `parallel` runs in turns, pinned to `threads` cores and to
    one GPU if there are any.

    Yields a few times a second. When closed or interrupted it lets the processes save and end.
    """
    cores, libc, begun = sorted(os.sched_getaffinity(0)), ctypes.CDLL(None), time.time()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
    # A process with one run ends with it and gives way to the next; one with several takes them all in turn.
    waiting = [[run] for run in runs] if parallel == 1 else [list(runs[n::jobs]) for n in range(min(jobs, len(runs)))]
    active = dict[int, tuple[list[Run], subprocess.Popen]]()
    try:
        while waiting or active:
            for slot in range(jobs):
                if slot not in active and waiting:
                    share = waiting.pop(0)
                    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "WORLD_SIZE": "1"}  # each run its own
                    if gpus:
                        environment["CUDA_VISIBLE_DEVICES"] = visible[slot % gpus]
                    own = {cores[(slot * threads + i) % len(cores)] for i in range(threads)}

                    def tie(own: set[int] = own) -> None:  # to its cores, and to the life of this process
                        os.sched_setaffinity(0, own)
                        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)

                    tasks = [{"config": run.cfg.to_json(), "out": str(run.out), "log": str(run.log)} for run in share]
                    given = {"at_once": parallel, "device": device, "checkpoint_every": checkpoint_every}
                    with share[0].log.open("ab") as log:  # for what goes wrong before the first run begins
                        process = subprocess.Popen(
                            [sys.executable, "-X", "faulthandler", "-m", "crgan.together"], stdin=subprocess.PIPE,
                            stdout=log, stderr=subprocess.STDOUT, env=environment, preexec_fn=tie,
                        )  # fmt: skip
                    assert process.stdin is not None
                    process.stdin.write(json.dumps(given | {"tasks": tasks}).encode())
                    process.stdin.close()
                    active[slot] = share, process
            yield
            time.sleep(0.2)
            for slot, (share, process) in list(active.items()):
                ended = process.poll() is not None
                mark_begun(share, begun)
                for run in share:
                    if (ended or run.step >= run.cfg.steps) and run.finished():
                        run.state = "done"
                    elif ended:
                        run.state = "failed"
                        if process.returncode < 0:
                            with run.log.open("a") as last:
                                number = -process.returncode
                                last.write(f"its process was ended by signal {number} ({signal.strsignal(number)})\n")
                if ended:
                    del active[slot]
    finally:
        for _, process in active.values():
            process.send_signal(signal.SIGTERM)  # a second one, after Ctrl-C in a terminal, changes nothing
        for _, process in active.values():
            process.wait()


def mark_begun(runs: Sequence[Run], begun: float) -> None:
    """By their logs, which a run touches when it begins."""
    for run in runs:
        if run.state == "waiting" and run.log.exists() and run.log.stat().st_mtime >= begun:
            run.state = "running"


def run_on_cluster(runs: Sequence[Run], flags: list[str], threads: int, gpus: float) -> Generator[None, None, None]:
    """Trains `runs` on the Ray cluster that `cluster.connect` has joined; yields a few times a second."""
    begun = time.time()
    pieces = {run.name: (train.main, [*run.flags, "--out", str(run.out), *flags], str(run.log)) for run in runs}
    named = {run.name: run for run in runs}
    for ended in cluster.scatter(cluster.run_command, pieces, threads, gpus):
        if ended is not None:
            name, result = ended
            if isinstance(result, Exception):
                with named[name].log.open("a") as log:
                    log.write(f"{result}\n")
            named[name].state = "done" if result == 0 else "failed"
            continue
        mark_begun(runs, begun)  # Ray does not say
        yield


# ---------------------------------------------------------------- the command


def table(runs: Sequence[Run]) -> Group:
    counts = Counter(run.state for run in runs)
    states = ("running", "failed", "done", "waiting")
    text = Text(f"{len(runs)} runs: " + ", ".join(f"{counts[state]} {state}" for state in states))
    rows = Table(Column("run", overflow="fold"), "state", "step", "steps/s", SCORE)
    for run in sorted(runs, key=lambda run: states.index(run.state))[:SHOWN]:
        rate = run.rate() if run.state == "running" else None
        rows.add_row(
            run.name, run.state, f"{run.step:,} / {run.cfg.steps:,}", "" if rate is None else f"{rate:.1f}",
            "" if run.score is None else f"{run.score:.3f}",
        )  # fmt: skip
    return Group(rows, text)


@dataclass(frozen=True)
class Arguments:
    out: Path
    """Folder of the sweep; a run folder for each run is made in it."""
    seeds: str = ""
    """Seeds, as first:end or as a list with commas; default the preset's."""
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """field=value,value: a setting that every combination takes a value of. May be given several times."""
    list: Path | None = None
    """File with a JSON object of fields per line, for settings that form no grid."""
    jobs: int | None = None
    """Processes at once on this machine; default one per `threads` cores, or one per GPU."""
    threads: int = 1
    """CPU cores of a run. The last bits of a result depend on it."""
    parallel: int = 1
    """Runs that share a GPU: they take turns in one process, each on a CUDA stream of its own; on Ray, processes."""
    device: str = "auto"
    """auto, cpu or cuda."""
    checkpoint_every: int = 1_000
    """Steps between two checkpoints."""
    ray: str | None = None
    """Address of a Ray cluster that sees `out` on shared storage, or auto; default: this machine alone."""
    dry_run: bool = False
    """Print the command of each run and exit."""


def sweep(preset: str, given: Arguments) -> list[Run]:
    """Trains all runs that are not finished and returns all, each with its state and score."""
    counts = ("threads", "parallel", "checkpoint_every", "jobs")
    cli.at_least(1, **{name: getattr(given, name) for name in counts})
    if given.device not in ("auto", "cpu", "cuda"):
        raise InputError(f"--device is {given.device!r}; expected auto, cpu or cuda: a sweep takes all GPUs it sees")
    runs = expand(preset, given.out, given.set, given.seeds, given.list)
    if given.dry_run:
        for run in runs:
            print(shlex.join(["python", "-m", "crgan.train", *run.flags, "--out", str(run.out)]))
        return runs
    for run in runs:
        run.look()
        run.state = "done" if run.finished() else "waiting"
        run.started = None
    due = [run for run in runs if run.state == "waiting"]
    if (given.out / "config.json").exists():
        raise InputError(f"{given.out} is a run folder, not one of a sweep; give another --out")
    for data, root in {(run.cfg.data, run.cfg.root) for run in due} if not given.ray else ():
        datasets.load(data, root)  # what is wrong with it would stop every run
    (given.out / ".sweep").mkdir(parents=True, exist_ok=True)
    has_gpus = cluster.connect(given.ray) if given.ray else torch.cuda.is_available()
    device = given.device if given.device != "auto" else "cuda" if has_gpus else "cpu"
    if given.ray:
        flags = ["--device", device, "--checkpoint-every", str(given.checkpoint_every)]
        steps = run_on_cluster(due, flags, given.threads, 1 / given.parallel if device == "cuda" else 0)
    else:
        gpus = torch.cuda.device_count() if device == "cuda" else 0
        if device == "cuda" and not gpus:
            raise InputError("--device is 'cuda' but torch sees no CUDA device; use --device cpu")
        jobs = given.jobs or (gpus or max(1, len(os.sched_getaffinity(0)) // given.threads))
        steps = run_here(due, device, given.checkpoint_every, jobs, given.parallel, given.threads, gpus)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with Live(table(runs), auto_refresh=False) as live:
            for _ in steps:
                for run in due:
                    if run.state != "waiting":
                        run.look()
                live.update(table(runs), refresh=True)
            live.update(table(runs), refresh=True)
    except KeyboardInterrupt:
        steps.close()
        print(f"\nstopped; what had begun in {given.out} was saved and the same command goes on", file=sys.stderr)
        sys.exit(130)
    finally:
        signal.signal(signal.SIGTERM, before)
    if not live.console.is_terminal:
        print()  # there the last table ends without one
    file = given.out / ".sweep" / "sweep.json"
    rows = {run.name: {"run": run.name, "state": run.state, "step": run.step, SCORE: run.score} for run in runs}
    write_json(file, list((_rows_before(file) | rows).values()))
    return runs


def _rows_before(file: Path) -> dict[str, dict[str, Any]]:
    """Of all runs that were swept into this folder, by name."""
    try:
        return {row["run"]: row for row in json.loads(file.read_text())}
    except (OSError, ValueError, KeyError, TypeError):  # none, or one that is damaged: the runs' own files hold it all
        return {}


def main(args: Sequence[str] | None = None) -> None:
    """Parses `PRESET [flags]` and trains."""
    args = sys.argv[1:] if args is None else list(args)
    with cli.command_process():
        preset = cli.take_preset(args)
        given = tyro.cli(
            Arguments,
            args=args,
            prog="python -m crgan.sweep [PRESET]",
            description=f"Train a pool of models. PRESET is one of {', '.join(PRESETS)} (now: {preset}).",
        )
        runs = sweep(preset, given)
        failed = [run for run in runs if run.state == "failed"]
        for run in failed:
            lines = run.log.read_text(errors="replace").strip().splitlines()
            print(f"failed: {run.name}: {lines[-1] if lines else 'no word'} (log: {run.log})", file=sys.stderr)
        if done := sum(run.state == "done" for run in runs):
            out = shlex.quote(str(given.out))
            print(f"{done} runs in {out}; python -m crgan.select {out}/* --out choice chooses among them")
        if failed:
            sys.exit(1)


if __name__ == "__main__":
    main()
