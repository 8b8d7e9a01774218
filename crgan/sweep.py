"""A pool of runs: `python -m crgan.sweep PRESET --seeds 0:10 --set cr_weight=0.5,1,2 --out DIR`.

Every run is a process `python -m crgan.train` with flags of its own, in a folder of its own. The same command again
skips what is finished and continues what was begun.
"""

import functools
import json
import os
import re
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
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
    """One run of a sweep, and what its files say of it."""

    name: str
    arguments: list[str]  # of python
    cfg: Config
    out: Path
    log: Path
    state: str = "waiting"  # running, done, failed, stopped
    result: int | Exception = 0
    step: int = 0
    factor_vae: float | None = None

    def look(self) -> None:
        """Read the last step and score from metrics.jsonl."""
        path = self.out / "metrics.jsonl"
        for line in path.read_bytes()[-65536:].split(b"\n") if path.exists() else ():
            with suppress(ValueError, KeyError, TypeError):  # half a line, or damaged by a power cut
                values = json.loads(line)
                self.step, self.factor_vae = values["step"], values.get("factor_vae", self.factor_vae)


Ends = Generator[tuple[Run, int | Exception] | None, None, None]  # the run that has ended and its exit code, or a tick


def expand(preset: str, out: Path, settings: Sequence[str], flags: Sequence[str] = ()) -> list[Run]:
    """Return the runs of a grid: every combination of the values of `settings`, "field=value,value" or "field=0:10".

    `flags` of crgan.train apply to every run. A run is named after its settings and its seed. What crgan.train does
    not take ends the process with its message.
    """
    from .train import parse

    axes: dict[str, list[str]] = {}
    for setting in settings:
        field, _, values = setting.partition("=")
        span = re.fullmatch(r"(\d+):(\d+)", values)
        found = span and [str(value) for value in range(int(span[1]), int(span[2]))]
        axes.setdefault(field.replace("-", "_"), []).extend(found or values.split(","))
    runs: dict[str, Run] = {}
    for chosen in (dict(zip(axes, values)) for values in product(*axes.values())):
        own = [*flags, *(f"--{field}={value}" for field, value in chosen.items())]
        _, cfg, _ = parse([preset, *own])
        name = ",".join(f"{field}={value}" for field, value in (chosen | {"seed": cfg.seed}).items()).replace("/", "_")
        folder, log = out.resolve() / name, out.resolve() / ".sweep" / f"{name}.log"
        if cfg.root:
            own.append(f"--root={Path(cfg.root).expanduser().resolve()}")  # as workers run in other folders
        runs[name] = Run(name, ["-m", "crgan.train", preset, *own, "--out", str(folder)], cfg, folder, log)
    return list(runs.values())


def run_here(runs: Sequence[Run], jobs: int, threads: int, gpus: Sequence[str]) -> Ends:
    """Train `runs`, `jobs` at once, each with `threads` CPU threads and one of the `gpus`, if any.

    When it is closed or interrupted, the runs save and end.
    """
    from .cluster import start_python

    waiting, active = list(runs), dict[int, tuple[Run, Any]]()
    try:
        while waiting or active:
            for slot in range(jobs):
                if slot not in active and waiting:
                    run = waiting.pop(0)
                    gpu = {"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]} if gpus else {}
                    active[slot] = run, start_python(run.arguments, run.log, {"OMP_NUM_THREADS": str(threads)} | gpu)
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


def follow(runs: Sequence[Run], ends: Ends, stopped: Callable[[], int]) -> None:
    """Keep the states of the runs, and show their progress, until all have ended or `stopped()`."""
    with cli.progress() as progress, closing(ends):
        progress.start("sweep", sum(run.cfg.steps for run in runs), sum(run.step for run in runs), "steps")
        for ended in ends:
            if stopped():
                break
            for run in runs:
                if run.state in ("waiting", "running") and run.log.exists():  # wherever it runs
                    run.state = "running"
                    run.look()
            if ended is not None:
                run, run.result = ended
                run.state = "failed" if run.result else "done"
            counts = Counter(run.state for run in runs)
            progress.update(sum(run.step for run in runs), ", ".join(f"{n} {state}" for state, n in counts.items()))
    for run in runs:
        run.state = "stopped" if run.state == "running" else run.state


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
        device: The GPUs, if there are any, or the CPU.
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
    rows = json.loads(table.read_text()) if table.exists() else []
    done = [row["arguments"] for row in rows if row["state"] == "done"]
    for run in runs:
        run.look()
        run.state = "done" if run.arguments in done and run.out.exists() else "waiting"
    due = [run for run in runs if run.state == "waiting"]
    if ray:
        use_gpus = cluster.connect(ray) and device != "cpu"
        work = {run: (run.arguments, str(run.log)) for run in due}
        ends = cluster.scatter(cluster.run_python, work, threads, float(use_gpus))
    else:
        for name, root in {(run.cfg.data, run.cfg.root) for run in due}:
            data.load(name, root)  # what is wrong with it would stop every run
        count = torch.cuda.device_count() if cli.device(device).type == "cuda" else 0
        gpus = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count)))).split(",")[:count]
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        ends = run_here(due, jobs or count or max(1, cores // threads), threads, gpus)
    table.parent.mkdir(parents=True, exist_ok=True)
    for run in due:
        run.log.unlink(missing_ok=True)
    with cli.stop_signal() as stopped:
        follow(runs, ends, stopped)
        number = stopped()
    shown = ("name", "state", "step", "factor_vae", "arguments")
    write_json(table, [{key: getattr(run, key) for key in shown} for run in runs])
    if number:
        print(f"stopped; what had begun in {out} was saved and the same command continues it")
        sys.exit(128 + number)
    failed = [run for run in runs if run.state == "failed"]
    for run in failed:
        *_, line = ["no word", *run.log.read_text(errors="replace").strip().splitlines()]
        print(f"failed: {run.name}: {line} (ended with {run.result}; log: {run.log})", file=sys.stderr)
    print(f"{len(runs) - len(failed)} of {len(runs)} runs are done; `crgan select {out}/* --out choice` ranks them")
    if failed:
        sys.exit(1)


def main(args: Sequence[str] | None = None) -> None:
    with cli.command_process():
        bind = functools.wraps(sweep)(functools.partial(functools.partial, sweep))
        what = (sweep.__doc__ or "").partition("\n")[0]
        bound, flags = tyro.cli(bind, args=args, prog="crgan sweep", description=what, return_unknown_args=True)
        bound(flags=tuple(flags))


if __name__ == "__main__":
    main()
