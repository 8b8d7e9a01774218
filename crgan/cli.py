"""What commands share: flags from signatures, errors in one sentence, signals, the device, progress."""

import ctypes
import errno
import functools
import os
import re
import signal
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .errors import InputError

if TYPE_CHECKING:  # --help and typos answer before torch is loaded
    import torch

PARENT = "CRGAN_PARENT"
"""Environment variable: the id of the process that started this one and that it must not outlive."""


# ---------------------------------------------------------------- flags


def run(name: str, command: Callable[..., Any], args: Sequence[str] | None = None, unknown: str | None = None) -> None:
    """Call `command` with its parameters from the command line; its signature and docstring make the flags.

    Parameters before a `/` are positional. Flags that the command does not know are an error; where `unknown` names a
    parameter, they go there as a tuple of strings.
    """
    with command_process():
        import tyro

        @functools.wraps(command)
        def bind(*given: Any, **named: Any) -> Any:
            return functools.partial(command, *given, **named)

        prog = name.replace(".", " ")
        if unknown is None:
            tyro.cli(bind, args=args, prog=prog)()
        else:
            bound, rest = tyro.cli(bind, args=args, prog=prog, return_unknown_args=True)
            bound(**{unknown: tuple(rest)})


def at_least(least: int, **flags: int | None) -> None:
    """Raise InputError for a flag whose value is smaller than `least`."""
    for name, value in flags.items():
        if value is not None and value < least:
            raise InputError(f"--{name.replace('_', '-')} is {value}; expected a number of at least {least}")


def device(name: str) -> "torch.device":
    """Return the device of a command's --device; "auto" is the GPU where there is one.

    A device with a number becomes the current one, on which streams, graphs and Triton kernels run.
    """
    import torch

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


# ---------------------------------------------------------------- the process


@contextmanager
def command_process() -> Iterator[None]:
    """Run the body as a command: invalid input ends in one sentence on stderr and exit code 2, warnings in one line."""
    tune_malloc()
    follow_parent()
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *place: print(f"warning: {message}", file=sys.stderr)
            yield
            sys.stdout.flush()
    except (InputError, OSError) as error:
        output_fails = isinstance(error, OSError) and error.filename is None and _discard_stdout()
        if output_fails and error.errno == errno.EPIPE:  # type: ignore[union-attr]
            sys.exit(1)  # the reader, as `head`, has seen enough
        if output_fails:
            error.filename = "standard output"  # type: ignore[union-attr]
        if (message := sentence(error)) is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; what was saved stays", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def sentence(error: Exception) -> str | None:
    """Return what to tell the user, who can mend it; None for a fault of the program."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, OSError) and error.errno is not None:
        return f"{error.filename or 'a file'}: {error.strerror}"
    return None


def _discard_stdout() -> bool:
    """Return whether stdout cannot be written, and then drop what waits there: Python would fail on it at its end."""
    try:
        print(flush=True)  # what failed may have been dropped already
        return False
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True


def tune_malloc() -> None:
    """Let this process keep the memory that it frees, in huge pages where the system grants them.

    Every step allocates the same tensors, and glibc returns each large one to the system. On one CPU core a step of
    `dsprites` takes 805 ms of processor time and 60,000 page faults without this, 660 ms and 90 with it; one of
    `dsprites-fast` 520 and 425 ms. A library must not decide that for its process; a command may.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch reads it at its first allocation
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # malloc.h
        for option, value in ((trim_threshold, 1 << 30), (top_pad, 1 << 26), (mmap_threshold, 1 << 25)):
            mallopt(option, value)


def follow_parent() -> None:
    """Send this process SIGTERM, at which training saves and ends, once the process that `PARENT` names is gone."""
    parent = int(os.environ.pop(PARENT, 0))

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGTERM)

    if parent:
        threading.Thread(target=watch, daemon=True).start()


@contextmanager
def stop_signal() -> Iterator[Callable[[], int]]:
    """Let Ctrl-C and SIGTERM only raise a flag: `stopped()` returns the signal's number, or 0.

    Before the first call of `stopped`, and at a second Ctrl-C, they end the process at once.
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


# ---------------------------------------------------------------- what it says


def announce(doing: str, device: "torch.device", **facts: Any) -> None:
    """Print the one line that says what a command will do and on what: device, threads and the `facts` given."""
    import torch

    on = f"1 x {torch.cuda.get_device_name(device)}" if device.type == "cuda" else "CPU"
    threads = torch.get_num_threads()
    parts = [on, f"{threads} thread{'s' * (threads > 1)}", *(f"{name} {value}" for name, value in facts.items())]
    print(f"{doing}: {', '.join(parts)}", flush=True)


class Progress:
    """The progress of one piece of work after another; see `progress`."""

    def __init__(self, bar: Any, every: float):
        self.bar, self.every = bar, every
        self.start("", None)

    def start(self, what: str, total: float | None, done: float = 0, unit: str = "") -> None:
        """Begin a piece of work of `total` units, of which `done` are done."""
        self.what, self.total, self.done, self.unit, self.note = what, total, done, unit, ""
        self.printed, self.idle = time.monotonic(), 0.0
        self.recent: deque[tuple[float, float]] = deque([(self.printed, done)], maxlen=60)
        self.bar.reset(self.bar.task_ids[0], total=total, completed=done)
        self._show()

    def update(self, done: float | None = None, note: str | None = None, total: float | None = None) -> None:
        """Say how much is done, and what else is to be shown beside."""
        self.done = self.done if done is None else done
        self.note = self.note if note is None else note
        self.total = self.total if total is None else total
        now = time.monotonic() - self.idle
        if now - self.recent[-1][0] >= 1:
            self.recent.append((now, self.done))
        self._show()

    def advance(self, count: float = 1) -> None:
        """Say that `count` more units are done."""
        self.update(self.done + count)

    @contextmanager
    def aside(self, what: str) -> Iterator[None]:
        """Show `what` while the body runs, whose time does not count in the rate."""
        begun, name = time.monotonic(), self.what
        self.what = what
        self._show()
        yield
        self.what, self.idle = name, self.idle + time.monotonic() - begun
        self._show()

    def rate(self) -> float | None:
        """Return units per second over the last minutes; None before the first second."""
        (first, before), (last, done) = self.recent[0], self.recent[-1]
        return (done - before) / (last - first) if last > first else None

    def _show(self) -> None:
        rate = self.rate()
        speed = "" if rate is None else f"{rate:,.{0 if rate >= 100 else 1}f}{self.unit and ' ' + self.unit}/s"
        words = {"what": self.what, "speed": speed, "note": self.note}
        self.bar.update(self.bar.task_ids[0], completed=self.done, total=self.total, **words)
        if self.every and (now := time.monotonic()) - self.printed >= self.every:
            self.printed = now
            of = f" of {self.total:,.0f} ({self.done / self.total:.0%})" if self.total else ""
            line = (f"{self.what}: {self.done:,.0f}{of}", speed, self.note)
            print(", ".join(filter(None, line)), file=sys.stderr, flush=True)


@contextmanager
def progress(shown: bool = True, every: float = 60.0) -> Iterator[Progress]:
    """Show a progress bar on stderr; where that is no terminal, print a line there every `every` seconds.

    What the body prints appears above the bar.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    text = [TextColumn(f"{{task.fields[{name}]}}", markup=False) for name in ("what", "speed", "note")]
    columns = (text[0], BarColumn(8), MofNCompleteColumn(), text[1], TimeRemainingColumn(compact=True), text[2])
    visible = shown and console.is_terminal
    with Bar(
        *columns, console=console, disable=not visible, redirect_stdout=sys.stdout.isatty(), speed_estimate_period=60
    ) as bar:
        bar.add_task("", total=None, what="", speed="", note="")
        yield Progress(bar, every if shown and not visible else 0)
