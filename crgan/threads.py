"""Threads of a core each."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import torch


def core_each(cores: int, begin: Callable[[], None] = lambda: None) -> ThreadPoolExecutor:
    """`cores` threads, in each of which torch computes with one; each calls `begin` first."""
    kept, started = torch.get_num_threads(), Barrier(cores)

    def start() -> None:
        try:
            torch.set_num_threads(1)
            begin()
        except BaseException:
            started.abort()  # who waits for all would wait for ever
            raise

    threads = ThreadPoolExecutor(cores, initializer=start)
    try:
        list(threads.map(lambda _: started.wait(), range(cores)))
    finally:
        torch.set_num_threads(kept)  # threads that begin later take the number that was set last, in any thread
    return threads
