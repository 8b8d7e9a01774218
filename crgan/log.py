"""What a run in training tells: metrics.jsonl and TensorBoard events in its folder, a bar on the terminal."""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from .errors import InputError
from .files import named_errors


class Log:
    """metrics.jsonl, one object per line, and the same as TensorBoard events."""

    def __init__(self, file: IO[str], out: Path, state: dict[str, Any]):
        if file.seek(0, 2) < state["metrics_bytes"]:
            raise InputError(
                f"{file.name} is shorter than when the checkpoint was written; restore it or give another --out"
            )
        self.file = file
        self.file.truncate(state["metrics_bytes"])  # lines after the checkpoint will be written again
        self.file.seek(0, 2)
        self.board = SummaryWriter(str(out), purge_step=state["step"] + 1 if state["step"] else None)

    def write(self, step: int, values: dict[str, float]) -> None:
        if values:
            with named_errors(self.file.name):
                self.file.write(json.dumps({"step": step, **values}) + "\n")
                self.file.flush()
        for name, value in values.items():
            self.board.add_scalar(name, value, step)

    def picture(self, step: int, picture: Any) -> None:
        self.board.add_image("traversal", np.asarray(picture), step, dataformats="HWC")

    def size(self) -> int:
        self.board.flush()
        with named_errors(self.file.name):
            os.fsync(self.file.fileno())  # a checkpoint holds this size: after a power cut the lines must be there too
        return self.file.tell()

    def close(self) -> None:
        self.board.close()
        self.file.close()


@contextmanager
def progress(total: int, done: int, shown: bool) -> Iterator[Callable[..., None]]:
    """A bar with the rate, the time left and the losses; `show(step, losses or None, line)` moves it, and prints."""
    columns = (  # within 80 characters
        BarColumn(8), MofNCompleteColumn(), TextColumn("{task.fields[rate]:.1f} steps/s"),
        TimeRemainingColumn(compact=True), TextColumn("{task.description}"),
    )  # fmt: skip
    with Progress(*columns, speed_estimate_period=60, disable=not shown) as bar:
        task = bar.add_task("", total=total, completed=done, rate=0.0)
        start = time.monotonic()

        def show(step: int, report: dict[str, float] | None, line: str = "") -> None:
            rate = (step - done) / max(time.monotonic() - start, 1e-9)
            bar.update(task, completed=step, rate=rate)
            if line:
                bar.console.print(line, highlight=False)
            if report is not None:
                bar.update(task, description=" ".join(f"{name} {value:.2f}" for name, value in report.items()))

        yield show
