"""What every command shares: its errors end in one sentence and an exit code."""

import sys
from collections.abc import Callable, Sequence
from contextlib import contextmanager

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


def run(command: Callable[..., None], args: Sequence[str] | None = None) -> None:
    """Calls `command` with its parameters read from the command line (their types and docstring make the flags)."""
    with user_errors():
        tyro.cli(command, args=args)
