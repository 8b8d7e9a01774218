"""A pool of runs: `python -m crgan.sweep PRESET --seeds 0:10 --set cr_weight=0.5,1,2 --out DIR`.

Every run is a process `python -m crgan.train` with flags and a folder of its own.
"""

import functools
import json
import os
import re
import shlex
import sys
import time
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from . import cli
from .config import Config
from .files import write_json


@dataclass(eq=False)
class Run:
    """One run of a sweep."""

    arguments: list[str]  # of python
    cfg: Config
    out: Path
    result: int | Exception | None = None  # its exit code, once it has ended

    @property
    def log(self) -> Path:
        return self.out.parent / ".sweep" / f"{self.out.name}.log"

    @property
    def state(self) -> str:
        if self.result is None:
            return "running" if self.log.exists() else "waiting"  # wherever it runs
        return "failed" if self.result else "done"

    @property
    def step(self) -> int:
        """Return the last step in metrics.jsonl, whose last line may be incomplete."""
        path = self.out / "metrics.jsonl"
        if not path.exists():
            return 0
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 4096))
            tail = file.read()
        return max(map(int, re.findall(rb'^{"step": (\d+),.*}$', tail, re.MULTILINE)), default=0)


def expand(preset: str, out: Path, settings: Sequence[str], flags: Sequence[str] = ()) -> list[Run]:
    """Return the runs of a grid: every combination of the values of `settings`, "field=value,value" or "field=0:10".

    `flags` of crgan.train apply to every run. One that crgan.train rejects ends the process with its error message.
    """
    from .train import parse

    axes: dict[str, list[str]] = {}
    for setting in settings:
        field, _, values = setting.partition("=")
        span = re.fullmatch(r"(\d+):(\d+)", values)
        found = span and [str(value) for value in range(int(span[1]), int(span[2]))]
        axes.setdefault(field.replace("-", "_"), []).extend(found or values.split(","))
    runs: dict[Path, Run] = {}
    for chosen in (dict(zip(axes, values)) for values in product(*axes.values())):
        own = [*flags, *(f"--{field}={value}" for field, value in chosen.items())]
        _, cfg, _ = parse([preset, *own])
        name = ",".join(f"{field}={value}" for field, value in (chosen | {"seed": cfg.seed}).items())
        folder = out.resolve() / name.replace("/", "_")
        if cfg.root:
            own.append(f"--root={Path(cfg.root).expanduser().resolve()}")  # as Ray's workers run in other folders
        runs[folder] = Run(["-m", "crgan.train", preset, *own, "--out", str(folder)], cfg, folder)
    return list(runs.values())


def run_here(runs: Sequence[Run], jobs: int, threads: int, gpus: Sequence[str]) -> Generator[Any, None, None]:
    """Train `runs`, `jobs` at once, each with `threads` CPU threads and one of the `gpus`, if any.

    Yields (run, exit code) for each run that has ended, and None in between. Closing this makes the runs save and end.
    """
    waiting, active = list(runs), dict[int, tuple[Run, Any]]()
    try:
        while waiting or active:
            for slot in range(jobs):
                if slot not in active and waiting:
                    run = waiting.pop(0)
                    gpu = {"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]} if gpus else {}
                    process = cli.start_python(run.arguments, run.log, {"OMP_NUM_THREADS": str(threads)} | gpu)
                    active[slot] = run, process
            yield None
            time.sleep(0.2)
            for slot, (run, process) in list(active.items()):
                if (code := process.poll()) is not None:
                    del active[slot]
                    yield run, code
    finally:
        for _, process in active.values():
            process.terminate()
        for _, process in active.values():
            process.wait()


def sweep(
    preset: str = "quick",
    /,
    *,
    out: Path,
    seeds: str | None = None,
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = (),
    jobs: int | None = None,
    threads: int = 1,
    device: Literal["auto", "cpu", "cuda"] = "auto",
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
        jobs: Runs at once on this machine; default: one per GPU, or one per `threads` cores. Several may share a GPU.
        threads: CPU threads of a run. The last bits of a result depend on it.
        device: auto (the GPUs, if there are any), cpu or cuda.
        ray: Address of a Ray cluster that sees `out` on shared storage, or auto; default: this machine alone.
        dry_run: Print the command of each run and exit.
    """
    import torch

    from . import cluster, data

    cli.at_least(1, threads=threads, jobs=jobs)
    out, settings = Path(out).expanduser(), [*set, *([f"seed={seeds}"] if seeds else [])]
    runs = expand(preset, out, settings, [*flags, f"--threads={threads}", f"--device={device}"])
    if dry_run:
        print("\n".join(shlex.join(["python", *run.arguments]) for run in runs))
        return
    table = out / ".sweep" / "sweep.json"
    before = json.loads(table.read_text()) if table.exists() else []
    rows = {row["name"]: row for row in before if (out / row["name"]).exists()}  # also those of earlier grids
    for run in runs:
        if (row := rows.get(run.out.name)) and row["state"] == "done" and row["arguments"] == run.arguments:
            run.result = 0
    due = [run for run in runs if run.result is None]
    if ray:
        use_gpus = cluster.connect(ray) and device != "cpu"
        work = {run: (run.arguments, str(run.log)) for run in due}
        ends = cluster.scatter(cluster.run_python, work, threads, float(use_gpus))
    else:
        for name, root in {(run.cfg.data, run.cfg.root) for run in due}:
            data.load(name, root)  # an error here would stop every run
        count = torch.cuda.device_count() if cli.device(device).type == "cuda" else 0
        gpus = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count)))).split(",")[:count]
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        ends = run_here(due, jobs or count or max(1, cores // threads), threads, gpus)
    table.parent.mkdir(parents=True, exist_ok=True)
    for run in due:
        run.log.unlink(missing_ok=True)
    with cli.delayed_stop() as stop:
        with cli.progress() as progress, closing(ends):
            steps = {run: run.step for run in runs}
            progress.start("sweep", sum(run.cfg.steps for run in runs), sum(steps.values()), "steps")
            for ended in ends:
                if stop:
                    break
                steps |= {run: run.step for run in due if run.result is None}
                if ended is not None:
                    run, run.result = ended
                counts = Counter(run.state for run in runs)
                progress.update(sum(steps.values()), ", ".join(f"{n} {state}" for state, n in counts.items()))
        for run in runs:
            name, state = run.out.name, run.state.replace("running", "stopped")
            rows[name] = {"name": name, "state": state, "step": run.step, "arguments": run.arguments}
        write_json(table, list(rows.values()))
        if stop:
            print(f"stopped; what had begun in {out} was saved and the same command continues it")
    failed = [run for run in runs if run.result]
    for run in failed:
        text = run.log.read_text(errors="replace").strip() if run.log.exists() else ""
        line = (text or "no output").splitlines()[-1]
        print(f"failed: {run.out.name}: {line} (ended with {run.result}; log: {run.log})", file=sys.stderr)
    print(f"{len(runs) - len(failed)} of {len(runs)} runs are done; `crgan select {out} --out choice` ranks them")
    if failed:
        sys.exit(1)


def main(args: Sequence[str] | None = None) -> None:
    with cli.command_process():
        # tyro returns the flags of crgan.train only after its call, so what it calls binds the others and does not run.
        bind = functools.wraps(sweep)(lambda *given, **named: functools.partial(sweep, *given, **named))
        what = (sweep.__doc__ or "").partition("\n")[0]
        bound, flags = tyro.cli(bind, args=args, prog="crgan sweep", description=what, return_unknown_args=True)
        bound(flags=tuple(flags))


if __name__ == "__main__":
    main()
