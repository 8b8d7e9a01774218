"""Atomic writes and locks: readers never meet half a file, even after a kill."""

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout


def write_atomically(path: str | Path, write: Callable[[Path], Any]) -> None:
    """Call `write(temporary)`, flush what it wrote to the disk, and move it to `path` in one step.

    If that fails, as on a full disk, raises an OSError that names `path` and leaves the old file as it was.
    """
    path = Path(path)
    with named_errors(path), tempfile.TemporaryDirectory(prefix=f".{path.stem}-", dir=path.parent) as folder:
        temporary = Path(folder) / path.name
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(json.dumps(value, indent=2) + "\n"))


@contextmanager
def named_errors(path: str | Path) -> Iterator[None]:
    """Add `path` to errors of the operating system that name no file, such as a full disk's."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


@contextmanager
def lock(folder: Path, timeout: float = 0) -> Iterator[bool]:
    """Hold the lock of `folder` and yield True; yield False if another process still holds it after `timeout` seconds.

    -1 waits for ever. Where the file system has no locks, or the folder cannot be written, every process gets it.
    """
    file, acquired = FileLock(folder / ".lock"), True
    try:
        file.acquire(timeout)
    except Timeout:
        acquired = False
    except (OSError, NotImplementedError):
        pass
    try:
        yield acquired
    finally:
        file.release()
