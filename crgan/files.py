"""Writing files so that a reader, or a kill at any moment, never meets half of one."""

import fcntl
import glob
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def write_atomically(path: str | Path, write: Callable[[Path], Any]) -> None:
    """`write(temporary)` makes the file, which then takes the place of `path` in one step, flushed to the disk.

    Raises OSError, with the old file untouched, where the disk is full or the folder cannot be written.
    """
    path = Path(path)
    owner = f".{path.stem}.{os.uname().nodename}-"
    temporary = path.with_name(f"{owner}{os.getpid()}{path.suffix}")
    for half in path.parent.glob(f"{glob.escape(owner)}*{glob.escape(path.suffix)}"):
        process = half.name.removeprefix(owner).removesuffix(path.suffix)
        if process.isdigit() and not _runs(int(process)):
            half.unlink(missing_ok=True)  # left by a process that was killed while it wrote
    try:
        with naming(path):
            write(temporary)
            flush(temporary)
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    flush(path.parent)


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """An error of the operating system that names no file is one of this file: a full disk does not say where."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


@contextmanager
def alone(folder: Path, wait: bool) -> Iterator[bool]:
    """Holds the lock of a folder, which other processes that ask respect; yields whether it has it. Where the file
    system has no locks, it does."""
    descriptor, mine = os.open(folder, os.O_RDONLY), True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        mine = False
    except OSError:
        pass
    try:
        yield mine
    finally:
        os.close(descriptor)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def write_json(path: str | Path, value: Any) -> None:
    text = json.dumps(value, indent=2) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text))


def flush(path: Path) -> None:
    """Makes a file, or the names in a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
