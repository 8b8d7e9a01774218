"""Training logs: metrics.jsonl, TensorBoard events if TensorBoard is installed, and the progress display."""

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .errors import InputError
from .files import named_errors


class Log:
    """metrics.jsonl, one object per line, and the same values as TensorBoard events.

    Continues after the last checkpoint: later lines are removed, as they will be written again.
    """

    def __init__(self, out: Path, state: dict[str, int]):
        self.file = (out / "metrics.jsonl").open("a+", errors="replace")
        if self.file.seek(0, 2) < state["metrics_bytes"]:
            self.file.close()
            raise InputError(
                f"{self.file.name} is shorter than when the checkpoint was written; restore it or give another --out"
            )
        self.file.truncate(state["metrics_bytes"])
        self.file.seek(0, 2)
        self.board: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        self.board = SummaryWriter(str(out), purge_step=state["step"] + 1 if state["step"] else None)

    def write(self, step: int, values: dict[str, float]) -> None:
        if values:
            with named_errors(self.file.name):
                self.file.write(json.dumps({"step": step, **values}) + "\n")
                self.file.flush()
        if self.board:
            for name, value in values.items():
                self.board.add_scalar(name, value, step)

    def pictures(self, step: int, **pictures: Any) -> None:
        if self.board:
            for name, picture in pictures.items():
                self.board.add_image(name, np.asarray(picture), step, dataformats="HWC")

    def size(self) -> int:
        """Return the bytes of metrics.jsonl, which are on the disk: a checkpoint holds this number."""
        if self.board:
            self.board.flush()
        with named_errors(self.file.name):
            os.fsync(self.file.fileno())
        return self.file.tell()

    def close(self) -> None:
        if self.board:
            self.board.close()
        self.file.close()


class TrainingProgress:
    """A bar with the rate, the time left and the losses; without a terminal, one line a minute."""

    def __init__(self, bar: Progress, total: int, done: int, threads: int):
        self.bar, self.total, self.threads = bar, total, threads
        self.task = bar.add_task("", total=total, completed=done, rate=0.0)
        self.since, self.first = time.monotonic(), done  # of the window in which the rate is measured
        self.rate = self.best_rate = 0.0

    def update(self, step: int, losses: dict[str, float]) -> None:
        now = time.monotonic()
        text = " ".join(f"{name} {value:.2f}" for name, value in losses.items())
        rate = (step - self.first) / max(now - self.since, 1e-9)
        self.bar.update(self.task, completed=step, rate=self.rate or rate, description=text)
        if now - self.since < 60:
            return
        self.since, self.first, self.rate = now, step, rate
        if self.bar.disable:
            print(f"step {step:,} of {self.total:,}, {rate:.1f} steps/s, {text}", flush=True)
        if rate < self.best_rate / 3 and self.threads > 1:
            self.print(f"{self.best_rate / rate:.0f} times slower than before: other work slows {self.threads} threads")
            self.print("down; stop it, or continue with another --out and --threads 1")
            self.threads = 1  # say it once
        self.best_rate = max(self.best_rate, rate)

    @contextmanager
    def paused(self, what: str) -> Iterator[None]:
        """Show `what` in place of the losses; the time does not count towards the rate."""
        begin = time.monotonic()
        self.bar.update(self.task, description=what)
        yield
        self.since += time.monotonic() - begin

    def print(self, line: str) -> None:
        if line:
            self.bar.console.print(line, highlight=False, markup=False)


@contextmanager
def training_progress(total: int, done: int, threads: int) -> Iterator[TrainingProgress]:
    """Context manager: display the progress of a training run from step `done` to `total`."""
    columns = (  # within 80 characters
        BarColumn(8), MofNCompleteColumn(), TextColumn("{task.fields[rate]:.1f} steps/s"),
        TimeRemainingColumn(compact=True), TextColumn("{task.description}"),
    )  # fmt: skip
    with Progress(*columns, speed_estimate_period=60, disable=not sys.stdout.isatty()) as bar:
        yield TrainingProgress(bar, total, done, threads)
