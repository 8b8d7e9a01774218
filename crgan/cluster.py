"""Work on a Ray cluster that is already there (extra `crgan[cluster]`): Ray places it, and repeats what a lost machine
had in hand. What a worker runs lives here, so that it is found by name on every machine that has crgan installed.
"""

import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from typing import Any, TypeVar

import torch

from .errors import InputError

Key = TypeVar("Key")
RETRIES = 20  # of one piece of work whose worker or machine was lost


def connect(address: str) -> bool:
    """Joins the cluster; tells whether it has GPUs. Raises InputError where Ray or the cluster is not there."""
    try:
        import ray
    except ImportError:
        raise InputError("--ray needs Ray, which is not installed: run `pip install 'crgan[cluster]'`") from None
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except ConnectionError:
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
) -> Iterator[tuple[Key, Any] | None]:
    """Runs work(threads, *arguments) for each piece, anywhere; yields (key, its result or exception) as they end.

    Also yields None every `tick` seconds. Each piece takes `threads` cores and a share `gpus` of a GPU.
    """
    import ray

    options = {"num_cpus": threads, "num_gpus": gpus, "max_retries": RETRIES}
    remote = ray.remote(work).options(**options)
    waiting = {remote.remote(threads, *arguments): key for key, arguments in pieces.items()}
    while waiting:
        ended, _ = ray.wait(list(waiting), timeout=tick)
        for reference in ended:
            try:
                result = ray.get(reference)
            except ray.exceptions.RayError as error:
                result = error
            yield waiting.pop(reference), result
        yield None


def train_run(threads: int, flags: list[str], log: str) -> int:
    """`python -m crgan.train` with these flags inside this worker, so that both die together; returns the exit code."""
    from .train import main

    torch.set_num_threads(threads)  # sums are split among threads: as many as in a local run give its bits
    with open(log, "a", buffering=1) as file, redirect_stdout(file), redirect_stderr(file):
        print(f"on {os.uname().nodename}, process {os.getpid()}")
        try:
            main(flags)
        except SystemExit as stop:
            if not isinstance(stop.code, int) or stop.code > 128:  # told to stop, not failed: goes on elsewhere
                raise
            return stop.code
        except Exception:
            traceback.print_exc(file=sys.stderr)
            return 1
    return 0
