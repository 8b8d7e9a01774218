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
        self.bar, self.total, self.done, self.threads = bar, total, done, threads
        self.task = bar.add_task("", total=total, completed=done, rate=0.0)
        self.start, self.last_line, self.best_rate, self.hinted = time.monotonic(), time.monotonic(), 0.0, False
        self.window = time.monotonic(), done

    def update(self, step: int, losses: dict[str, float]) -> None:
        now = time.monotonic()
        rate = (step - self.done) / max(now - self.start, 1e-9)
        text = " ".join(f"{name} {value:.2f}" for name, value in losses.items())
        self.bar.update(self.task, completed=step, rate=rate, description=text)
        if self.bar.disable and now - self.last_line > 60:
            self.last_line = now
            print(f"step {step:,} of {self.total:,}, {rate:.1f} steps/s, {text}", flush=True)
        self._hint(now, step)

    def _hint(self, now: float, step: int) -> None:
        """Say once that threads slow each other down, when the rate falls to a third."""
        since, first = self.window
        if now - since < 20 or self.threads == 1 or self.hinted:
            return
        rate, self.window = (step - first) / (now - since), (now, step)
        if rate < self.best_rate / 3:
            self.hinted = True
            self.print(
                f"steps take {self.best_rate / rate:.0f} times as long as before: something else uses the cores. "
                "--threads 1 suffers less"
            )
        self.best_rate = max(self.best_rate, rate)

    @contextmanager
    def paused(self, what: str) -> Iterator[None]:
        """Show `what` in place of the losses; the time does not count towards the rate."""
        begin = time.monotonic()
        self.bar.update(self.task, description=what)
        yield
        self.start += time.monotonic() - begin
        self.window = time.monotonic(), self.window[1]

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
