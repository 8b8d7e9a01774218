"""Training logs: metrics.jsonl, and TensorBoard events if TensorBoard is installed."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from .errors import InputError
from .files import flush, named_errors


class Log:
    """metrics.jsonl, one object per line, and the same values as TensorBoard events.

    Continues after the last checkpoint: later lines are removed, as they will be written again.
    """

    def __init__(self, out: Path, state: dict[str, int]):
        self.file = (out / "metrics.jsonl").open("a+", errors="replace")
        if self.file.seek(0, 2) < state["metrics_bytes"]:
            self.file.close()
            raise InputError(f"{self.file.name} is shorter than at the checkpoint; restore it or give another --out")
        self.file.truncate(state["metrics_bytes"])
        self.file.seek(0, 2)
        self.board: Any = None
        with suppress(ImportError, UnicodeError):  # not installed, or it cannot take the name of the folder
            from torch.utils.tensorboard import SummaryWriter

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
        flush(Path(self.file.name))
        return self.file.tell()

    def close(self) -> None:
        if self.board:
            self.board.close()
        self.file.close()
