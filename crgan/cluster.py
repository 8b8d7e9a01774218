"""Work on a Ray cluster that is already there (extra `crgan[cluster]`): Ray places it, and repeats what a lost machine
had in hand. What a worker runs lives here, so that it is found by name on every machine that has crgan installed.
"""

import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

import torch

from . import cli
from .errors import InputError
from .loading import Member, members_of, open_models
from .selection.centrality import Pair, Pool, Sizes

Key = TypeVar("Key")
RETRIES = 20  # of one piece of work whose worker or machine was lost
BLOCKS_PER_SLOT = 4  # pieces of a selection for each that run at once, so that all end at about the same time


def connect(address: str) -> bool:
    """Joins the cluster; tells whether it has GPUs. Raises InputError where Ray or the cluster is not there."""
    try:
        import ray
    except ImportError:
        raise InputError("--ray needs Ray, which is not installed: run `pip install 'crgan[cluster]'`") from None
    host, _, port = address.rpartition(":")
    try:
        if port.isdigit() and "/" not in host:  # Ray itself would wait for minutes
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except OSError:  # a ConnectionError is one
        raise InputError(
            f"there is no Ray cluster at {address!r}; give the address that `ray start --head` printed"
        ) from None
    return ray.cluster_resources().get("GPU", 0) > 0


def scatter(
    work: Callable[..., Any],
    pieces: Mapping[Key, tuple[Any, ...]],
    threads: int,
    gpus: float = 0.0,
    tick: float = 0.5,
) -> Generator[tuple[Key, Any] | None, None, None]:
    """Runs work(threads, *arguments) for each piece, anywhere; yields (key, its result or exception) as they end.

    Also yields None every `tick` seconds. Each piece takes `threads` cores and a share `gpus` of a GPU.
    """
    import ray

    options = {"num_cpus": threads, "num_gpus": gpus, "max_retries": RETRIES, "retry_exceptions": [ChildProcessError]}
    remote = ray.remote(work).options(**options)
    waiting = {remote.remote(threads, *arguments): key for key, arguments in pieces.items()}
    while waiting:
        ended, _ = ray.wait(list(waiting), timeout=tick)
        for reference in ended:
            try:
                result = ray.get(reference)
            except ray.exceptions.RayError as error:
                cause = getattr(error, "cause", None)
                result = cause if isinstance(cause, InputError) else error  # the latter holds the worker's traceback
            yield waiting.pop(reference), result
        yield None


def start_python(arguments: Sequence[str], log: str | Path, environment: Mapping[str, str]) -> subprocess.Popen:
    """Start `python ARGUMENTS`, its output appended to `log`; it ends, as at SIGTERM, when this process is gone."""
    with open(log, "ab") as file:
        return subprocess.Popen(
            [sys.executable, "-X", "faulthandler", *arguments], stdin=subprocess.DEVNULL, stdout=file,
            stderr=subprocess.STDOUT, env=os.environ | environment | {cli.PARENT: str(os.getpid())},
        )  # fmt: skip


def run_python(threads: int, arguments: Sequence[str], log: str) -> int:
    """Run `python ARGUMENTS` as a child of this worker and return its exit code.

    Raises ChildProcessError, after which Ray starts the command again, if a signal ended it.
    """
    with open(log, "a") as file:
        file.write(f"on {os.uname().nodename}, process {os.getpid()}\n")
    # As many threads as in a local run give its bits: sums are split among them.
    process = start_python(arguments, log, {"OMP_NUM_THREADS": str(threads)})
    try:
        code = process.wait()
    finally:  # where this task is cancelled
        process.terminate()
        process.wait()
    if code < 0 or code > 128:
        raise ChildProcessError(f"its process was ended by signal {-code if code < 0 else code - 128}")
    return code


class ClusterPool(Pool):
    """A pool measured on a Ray cluster: a block of pairs, one generator and some encoders, goes to one worker.

    Workers open the models themselves, at the same paths. What comes back equals what a local pool computes, with one
    thread to each bit for bit; a block whose worker was lost is computed again.
    """

    def __init__(
        self, runs: Sequence[str], sizes: Sizes, address: str, threads: int, device: str, batch_size: int | None = None
    ):
        if threads < 1:
            raise InputError(f"--threads is {threads}; expected at least 1")
        if device not in ("auto", "cpu", "cuda"):
            raise InputError(f"--device is {device!r}; expected auto, cpu or cuda: the cluster places the work")
        has_gpus = connect(address)
        if device == "cuda" and not has_gpus:
            raise InputError("--device is 'cuda' but the cluster has no GPU; use --device cpu")
        self.worker_threads = threads
        super().__init__(open_models(runs), sizes, batch_size=batch_size)
        self.device = "cuda" if has_gpus and device != "cpu" else "cpu"
        # Only a name that is no run of its own, as a module's, needs the others: they would travel with each block.
        runs = tuple(run.rstrip("/") for run in runs)
        self.runs = () if {member.name for member in self.members} <= set(runs) else runs

    def measure_all(self) -> None:
        self.drop_coarse()
        due: dict[int, dict[int, Pair]] = {}
        for j, i in product(range(len(self)), repeat=2):
            pair = self.pairs.setdefault((i, j), Pair())
            if pair.done < self.sizes.groups:
                due.setdefault(j, {})[i] = pair
        self._spread(due, self.sizes.groups)
        super().measure_all()

    def _encode(self, j: int, pairs: dict[int, Pair], groups: int) -> None:
        self._spread({j: pairs}, groups)

    def _spread(self, due: dict[int, dict[int, Pair]], groups: int) -> None:
        import ray

        gpus = int(self.device == "cuda")
        slots = ray.cluster_resources()["GPU"] if gpus else ray.cluster_resources()["CPU"] // self.worker_threads
        if slots < 1:
            raise InputError(f"no worker has {self.worker_threads} cores for itself; give --threads a smaller number")
        size = max(1, int(sum(map(len, due.values())) // (BLOCKS_PER_SLOT * slots)))
        common = (self.runs, self.device, os.getcwd(), self.sizes, self.batch_size, groups)
        blocks = {}
        for j, pairs in due.items():
            encoders = list(pairs)
            for start in range(0, len(encoders), size):
                block = {i: (self.members[i].name, pairs[i]) for i in encoders[start : start + size]}
                blocks[j, start] = (*common, self.members[j].name, block)
        for ended in scatter(measure_block, blocks, self.worker_threads, gpus):
            if ended is None:
                continue
            (j, _), result = ended
            if isinstance(result, Exception):
                raise result
            for i, pair in result.items():
                self.progress(int(self.sizes.encodes(groups) - self.sizes.encodes(due[j][i].done)))
                self.pairs[i, j] = pair


def measure_block(
    threads: int,
    runs: tuple[str, ...],
    device: str,
    folder: str,  # that the paths in `runs` start from
    sizes: Sizes,
    batch_size: int | None,
    groups: int,
    generator: str,
    encoders: dict[Any, tuple[str, Pair]],  # name of each, and what is known of it so far
) -> dict[Any, Pair]:
    """Brings some encoders up to the first `groups` groups of one generator, inside this worker."""
    torch.set_num_threads(threads)
    os.chdir(folder)
    names = [generator, *(name for name, _ in encoders.values())]
    pool = Pool([_member(runs, name, device) for name in names], sizes, batch_size=batch_size)
    pool.pairs = {(n, 0): pair for n, (_, pair) in enumerate(encoders.values(), 1)}
    pool.measure(0, range(1, len(names)), groups)
    return dict(zip(encoders, pool.pairs.values()))


@lru_cache(maxsize=4096)
def _member(runs: tuple[str, ...], name: str, device: str) -> Member:
    """The member of that name: of the run of that name, or of a module that returns several."""
    for run in [name] if name in runs or not runs else runs:
        for member in members_of(run, torch.device(device)):
            if member.name == name:
                return member
    raise InputError(f"{name} is in none of the runs where this worker looks; expected them on shared storage")
