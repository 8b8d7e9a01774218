"""What every command shares: its errors end in one sentence and an exit code."""

import sys
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import tyro

from .errors import InputError


@contextmanager
def user_errors():
    """Turns what the user can mend into one sentence on stderr and exit code 2, without a traceback."""
    try:
        yield
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno is None:  # not the operating system's word on a file
            raise
        print(f"error: {error.filename or 'a file'}: {error.strerror}", file=sys.stderr)
        sys.exit(2)


def run(command: Callable[..., Any], args: Sequence[str] | None = None) -> None:
    """Calls `command` with its parameters read from the command line (their types and docstring make the flags)."""
    with user_errors():
        tyro.cli(command, args=args)


def device(name: str) -> torch.device:
    """The device of a command's --device, "auto" being the GPU where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device is {name!r}, which torch cannot use ({str(error).splitlines()[0]})") from None
