"""What commands share: flags from signatures, errors in one sentence, signals, the device, progress."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from .errors import InputError, check_name

if TYPE_CHECKING:  # --help and typos answer before torch is loaded
    import torch

PARENT = "CRGAN_PARENT"  # environment variable: id of the parent process, which this one must not outlive


def run(name: str, command: Callable[..., Any], args: Sequence[str] | None = None) -> None:
    """Call `command` with parameters from the command line; its signature and docstring define the flags."""
    with command_process():
        import tyro

        tyro.cli(command, args=args, prog=name.replace(".", " "))


def at_least(least: int, **flags: int | None) -> None:
    """Raise InputError for a flag whose value is smaller than `least`."""
    for name, value in flags.items():
        if value is not None and value < least:
            raise InputError(f"--{name.replace('_', '-')} is {value}; expected a number of at least {least}")


def device(name: str) -> "torch.device":
    """Return the device of a command's --device; "auto" is the GPU where there is one."""
    import torch

    gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    check_name("device", name, ["auto", "cpu", *(["cuda", *gpus] if gpus else [])])
    device = torch.device(("cuda" if gpus else "cpu") if name == "auto" else name)
    if device.index is not None:
        torch.cuda.set_device(device)  # the current one, on which streams, graphs and Triton kernels run
    return device


@contextmanager
def command_process() -> Iterator[None]:
    """Run the body as a command: invalid input ends in one sentence on stderr and exit code 2, warnings in one line."""
    tune_malloc()
    follow_parent()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="surrogateescape")  # file names need not be UTF-8
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *where: print(f"warning: {message}", file=sys.stderr)
            try:
                yield
            finally:
                print(end="", flush=True)
    except (InputError, OSError) as error:
        message = str(error)
        if isinstance(error, OSError):
            if error.errno is None:  # raised by a library: a bug, not a mistake of the user
                raise
            if error.filename is None:
                try:
                    print(flush=True)
                except OSError:  # it is stdout, which Python would flush again at exit
                    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                    if isinstance(error, BrokenPipeError):  # the reader, such as `head`, has seen enough
                        sys.exit(1)
                    error.filename = "standard output"
            message = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; what was saved stays", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def tune_malloc() -> None:
    """Let this process keep the memory that it frees: every step allocates the same large tensors.

    On one CPU core a step of `dsprites` takes 805 ms of processor time without this, 660 with it.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch reads it at its first allocation
    if sys.platform == "linux":
        for option, value in ((-1, 1 << 30), (-2, 1 << 26), (-3, 1 << 25)):  # trim threshold, top pad, mmap threshold
            ctypes.CDLL(None).mallopt(option, value)


def follow_parent() -> None:
    """Send this process SIGTERM, on which training saves and ends, once its parent, named by `PARENT`, is gone."""

    def watch(parent: int) -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGTERM)

    if PARENT in os.environ:
        threading.Thread(target=watch, args=(int(os.environ.pop(PARENT)),), daemon=True).start()


def start_python(arguments: Sequence[str], log: str | Path, environment: Mapping[str, str]) -> subprocess.Popen:
    """Start `python ARGUMENTS` with output appended to `log`; it receives SIGTERM when this process is gone."""
    with open(log, "ab") as file:
        return subprocess.Popen(
            [sys.executable, "-X", "faulthandler", *arguments], stdin=subprocess.DEVNULL, stdout=file,
            stderr=subprocess.STDOUT, env=os.environ | environment | {PARENT: str(os.getpid())},
        )  # fmt: skip


@contextmanager
def delayed_stop() -> Iterator[list[int]]:
    """Delay Ctrl-C and SIGTERM to the end of the body; the list yielded holds the numbers of those received so far.

    A second Ctrl-C does not wait. Afterwards the handler found before is called, if there is one, and the process ends.
    Ignored signals stay ignored. Outside the main thread, which receives all signals, nothing is delayed.
    """
    received: list[int] = []

    def note(number: int, _frame: Any) -> None:
        if number == signal.SIGINT and number in received:
            raise KeyboardInterrupt
        received.append(number)

    before: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    in_main = threading.current_thread() is threading.main_thread()
    delayed = [number for number, found in before.items() if in_main and found not in (signal.SIG_IGN, None)]
    for number in delayed:
        signal.signal(number, note)
    try:
        yield received
    finally:
        for number in delayed:
            signal.signal(number, before[number])
    if received:
        if callable(before[received[-1]]):  # Python's own handler of Ctrl-C raises KeyboardInterrupt
            signal.raise_signal(received[-1])
        sys.exit(128 + received[-1])


def announce(doing: str, device: "torch.device", **facts: Any) -> None:
    """Print the one line that says what a command will do and on what: device, threads and the `facts` given."""
    import torch

    on = f"1 x {torch.cuda.get_device_name(device)}" if device.type == "cuda" else "CPU"
    facts = {"threads": torch.get_num_threads(), **facts}
    print(f"{doing}: {', '.join([on, *(f'{name} {value}' for name, value in facts.items())])}", flush=True)


class progress:
    """Context manager: a progress bar on stderr, or, where that is not a terminal, a line every `every` seconds.

    `task.speed` is the rate over the last minute, None at first.
    """

    def __init__(self, every: float = 60.0):
        self.every, self.idle, self.what, console = every, 0.0, "", Console(stderr=True)
        self.bar = Progress(
            "{task.description}", BarColumn(8), "{task.completed:,.0f}/{task.total:,.0f}", TimeRemainingColumn(True),
            TextColumn("{task.fields[note]}", table_column=Column()),  # which shrinks where the terminal is narrow
            console=console, disable=not console.is_terminal, redirect_stdout=bool(sys.stdout and sys.stdout.isatty()),
            speed_estimate_period=60, get_time=lambda: time.monotonic() - self.idle,
        )  # fmt: skip
        self.bar.add_task("", total=0, visible=False, note="")
        (self.task,) = self.bar.tasks

    def __enter__(self) -> "progress":
        self.bar.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.bar.stop()

    def start(self, what: str, total: float, done: int = 0, unit: str = "") -> None:
        """Begin a piece of work of `total` units, of which `done` are done."""
        self.what, self.unit, self.printed = what, f" {unit}".rstrip(), time.monotonic()
        self.bar.reset(self.task.id, total=total, completed=done, visible=True, description=what, note="")

    def update(self, done: float, note: str = "") -> None:
        """Set how much is done, and a note to show beside it."""
        if self.task.speed:
            note = f"{self.task.speed:,.1f}{self.unit}/s {note}"
        self.bar.update(self.task.id, completed=done, note=note)
        if self.bar.disable and time.monotonic() - self.printed >= self.every:
            self.printed = time.monotonic()
            of = f"{done:,.0f} of {self.task.total:,.0f} ({self.task.percentage:.0f}%)"
            print(f"{self.what}: {of}, {note}", file=sys.stderr, flush=True)

    def advance(self, count: float = 1) -> None:
        """Add `count` to the units that are done."""
        self.update(self.task.completed + count)

    @contextmanager
    def aside(self, what: str) -> Iterator[None]:
        """Show `what` while the body runs, and leave its time out of the rate."""
        begun, self.task.description = time.monotonic(), what
        yield
        self.task.description = self.what
        self.idle += time.monotonic() - begun
