"""What every command shares: a process that keeps its memory, and errors that end in one sentence and an exit code."""

import ctypes
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import tyro

from .config import PRESETS
from .errors import InputError


@contextmanager
def command_process():
    """Turns what the user can mend into one sentence on stderr and exit code 2, without a traceback; warnings into
    sentences."""
    keep_memory()
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *place: print(f"warning: {message}", file=sys.stderr)
            yield
    except (InputError, OSError) as error:
        if (said := sentence(error)) is None:
            raise
        print(f"error: {said}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; what was saved stays", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def sentence(error: Exception) -> str | None:
    """What to tell the user, who can mend it; None for a fault of the program."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, OSError) and error.errno is not None:  # the operating system's word on a file
        return f"{error.filename or 'a file'}: {error.strerror}"
    return None


def run(module: str, command: Callable[..., Any], args: Sequence[str] | None = None) -> None:
    """Calls `command` with its parameters read from the command line (their types and docstring make the flags)."""
    with command_process():
        tyro.cli(command, args=args, prog=f"python -m {module}")


def take_preset(args: list[str]) -> str:
    """The name of a preset that the arguments begin with, taken out of them; quick if they begin with a flag."""
    preset = args.pop(0) if args and not args[0].startswith("-") else "quick"
    if preset not in PRESETS:
        raise InputError(f"there is no preset {preset!r}; expected one of {', '.join(PRESETS)}")
    return preset


def at_least(least: int, **flags: int | None) -> None:
    """Raises InputError for a flag that was given a smaller number."""
    for name, value in flags.items():
        if value is not None and value < least:
            raise InputError(f"--{name.replace('_', '-')} is {value}; expected a number of at least {least}")


def keep_memory() -> None:
    """Lets this process keep the memory that it frees, in huge pages where the system grants them.

    Every step allocates the same tensors, and glibc gives each large one back to the system: a fifth to a third of a
    64x64 training step on a CPU is page faults. A library must not decide that for its process; a command may.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch reads it at its first allocation
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # malloc.h
        for option, value in ((trim_threshold, 1 << 30), (top_pad, 1 << 26), (mmap_threshold, 1 << 25)):
            mallopt(option, value)


def device(name: str) -> torch.device:
    """The device of a command's --device, "auto" being the GPU where there is one; one with a number becomes the
    current one, on which streams, graphs and Triton kernels run."""
    count = torch.cuda.device_count()
    if name == "auto":
        name = "cuda" if count else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise InputError(f"--device is {name!r}; expected auto, cpu, cuda or cuda:<number>")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= count:
        raise InputError(f"--device is {name!r} but torch sees {count} CUDA devices; use --device cpu")
    if device.index is not None:
        torch.cuda.set_device(device)
    return device


@contextmanager
def stop_signal() -> Iterator[Callable[[], int]]:
    """Until left, Ctrl-C and SIGTERM only raise a flag: `stopped()` is the signal's number, or 0.

    Before the first look at it, and at a second Ctrl-C, they end the process at once.
    """
    received, looked = 0, False

    def note(number: int, _frame: Any) -> None:
        nonlocal received
        if not looked or number == received == signal.SIGINT:
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
        received = number

    def stopped() -> int:
        nonlocal looked
        looked = True
        return received

    if threading.current_thread() is not threading.main_thread():  # only there may handlers be set
        yield lambda: 0
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
