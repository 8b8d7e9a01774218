"""Run work on an existing Ray cluster: Ray places it, and repeats what a lost machine was working on.

What workers run is defined here, so that every machine with crgan installed finds it by name.
"""

import logging
import os
import socket
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from . import cli
from .errors import InputError, check_name
from .loading import LoadedModel, models_of, open_models
from .selection.centrality import Images, PairVotes, Pool, Sizes, Work

RETRIES = 20  # of one piece of work whose worker or machine was lost
BLOCKS_PER_SLOT = 4  # blocks of pairs per worker: several, so that all workers end at about the same time


def connect(address: str) -> bool:
    """Join the cluster and return whether it has GPUs. Raises InputError where Ray or the cluster is missing."""
    try:
        import ray
    except ImportError:
        raise InputError("--ray needs Ray, which is not installed: run `pip install 'crgan[cluster]'`") from None
    host, _, port = address.rpartition(":")
    try:
        if port.isdigit() and "/" not in host:  # Ray itself would wait for minutes
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except OSError:  # Ray raises ConnectionError, a subclass
        raise InputError(f"there is no Ray cluster at {address!r}; give what `ray start --head` printed") from None
    return ray.cluster_resources().get("GPU", 0) > 0


def scatter(
    work: Callable[..., Any], pieces: Mapping[Any, tuple[Any, ...]], threads: int, gpus: float = 0.0
) -> Generator[tuple[Any, Any] | None, None, None]:
    """Run work(threads, *arguments) for each piece, anywhere; yield (key, its result or exception) as they end.

    Also yield None every second. Each piece takes `threads` cores and a share `gpus` of a GPU.
    """
    import ray

    options = {"num_cpus": threads, "num_gpus": gpus, "max_retries": RETRIES, "retry_exceptions": [ChildProcessError]}
    remote = ray.remote(work).options(**options)
    waiting = {remote.remote(threads, *arguments): key for key, arguments in pieces.items()}
    while waiting:
        ended, _ = ray.wait(list(waiting), timeout=1)
        for reference in ended:
            try:
                result = ray.get(reference)
            except ray.exceptions.RayError as error:
                cause = getattr(error, "cause", None)
                result = cause if isinstance(cause, InputError) else error  # the latter holds the worker's traceback
            yield waiting.pop(reference), result
        yield None


def run_python(threads: int, arguments: Sequence[str], log: str) -> int:
    """Run `python ARGUMENTS` as a child of this worker and return its exit code.

    Raises ChildProcessError if a signal ended it; Ray then starts the command again.
    """
    with open(log, "a") as file:
        file.write(f"on {os.uname().nodename}, process {os.getpid()}\n")
    # With as many threads as a local run, the bits are the same: sums are split among threads.
    process = cli.start_python(arguments, log, {"OMP_NUM_THREADS": str(threads)})
    try:
        code = process.wait()
    finally:  # also if this task is cancelled
        process.terminate()
        process.wait()
    if code < 0 or code > 128:
        raise ChildProcessError(f"its process was ended by signal {-code if code < 0 else code - 128}")
    return code


class ClusterPool(Pool):
    """A pool measured on a Ray cluster: each worker takes a block of pairs, one generator with some encoders.

    Workers open the models themselves, at the same paths. With one thread each, they equal a local pool bit for bit.
    """

    def __init__(
        self, runs: Sequence[str], sizes: Sizes, batch_size: int | None, address: str, threads: int, device: str
    ):
        check_name("device of a cluster", device, ("auto", "cpu", "cuda"))
        has_gpus = connect(address)
        if device == "cuda" and not has_gpus:
            raise InputError("--device is 'cuda' but the cluster has no GPU; use --device cpu")
        super().__init__(open_models(runs), sizes, batch_size)
        self.runs, self.worker_threads = tuple(runs), threads
        self.device = "cuda" if has_gpus and device != "cpu" else "cpu"

    def _take(self, work: Work, groups: int | None) -> Iterator[tuple[int, Iterable[int], list[PairVotes]]]:
        import ray

        gpus = int(self.device == "cuda")
        slots = ray.cluster_resources()["GPU"] if gpus else ray.cluster_resources()["CPU"] // self.worker_threads
        if slots < 1:
            raise InputError(f"no worker has {self.worker_threads} cores for itself; give --threads a smaller number")
        size = max(1, int(sum(map(len, work.values())) // (BLOCKS_PER_SLOT * slots)))
        common, blocks = (self.runs, self.device, os.getcwd(), self.sizes, self.batch_size, groups), {}
        for (j, done), before in work.items():
            for start in range(0, len(before), size):
                encoders = tuple(before)[start : start + size]
                names = [(self.names[i], self.keys[i]) for i in (j, *encoders)]
                blocks[j, done, encoders] = (*common, names, [before[i] for i in encoders])
        for (j, done, encoders), result in filter(None, scatter(measure_block, blocks, self.worker_threads, gpus)):
            if isinstance(result, Exception):
                raise result
            encodes = (groups - done) * self.sizes.group_size if groups else self.sizes.encodes
            self.progress(encodes * len(encoders))
            yield j, encoders, result


def measure_block(
    threads: int,
    runs: tuple[str, ...],
    device: str,
    folder: str,  # the paths in `runs` are relative to it
    sizes: Sizes,
    batch_size: int | None,
    groups: int | None,
    names: list[tuple[str, str]],  # name and cache key of the generator, then of each encoder
    before: list[PairVotes | None],  # the votes known, of each encoder
) -> list[PairVotes]:
    """Compute the votes of some encoders on one generator, inside this worker."""
    torch.set_num_threads(threads)
    os.chdir(folder)
    generator, *encoders = [_loaded(runs, name, key, device) for name, key in names]
    return Images(generator, sizes, batch_size, lambda encodes: None).votes(encoders, before, groups)


@lru_cache(maxsize=4096)
def _loaded(runs: tuple[str, ...], name: str, key: str, device: str) -> LoadedModel:
    """Open the model called `name`: a run folder, or one of the models that a module returns."""
    for run in [name] if any(Path(name, file).is_file() for file in ("config.json", "encode.pt2")) else runs:
        for model in models_of(run, torch.device(device)):
            if model.name == name:
                return LoadedModel(name, model.model, key)  # the draws depend on the key, as the main process has it
    raise InputError(f"{name} is in none of the runs where this worker looks; expected them on shared storage")
