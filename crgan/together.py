"""Several runs in one process, for `python -m crgan.sweep --parallel N`: their steps take turns.

On a GPU each run has a stream of its own: the step of one small network leaves most of a GPU idle, and the replayed
graphs of several run there at once. Each run's draws, weights and files are those that it has alone.
"""

import json
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch

from . import cli
from .config import Config
from .train import training


class Task(NamedTuple):
    cfg: Config
    out: Path  # run folder
    log: Path  # what `python -m crgan.train` would print, at its end one line on what went wrong


class _Turn(NamedTuple):
    steps: Iterator[Any]
    log: IO[str]
    stream: Any  # torch.cuda.Stream; None on a CPU


def train_together(tasks: Iterable[Task], at_once: int, device: torch.device, checkpoint_every: int = 1_000) -> int:
    """Trains all tasks, `at_once` of them in turns, and returns an exit code: 128 and the signal's number if it was
    stopped, with all that had begun saved; 1 if a run failed, which does not stop the others; else 0."""
    waiting, turns, failed = list(tasks), list[_Turn](), False
    with cli.stop_signal() as stopped:
        while turns or (waiting and not stopped()):
            while waiting and len(turns) < at_once and not stopped():
                cfg, out, log = waiting.pop(0)
                steps = training(cfg, out, device, stopped, checkpoint_every, shown=False)
                stream = torch.cuda.Stream(device) if device.type == "cuda" else None
                turns.append(_Turn(steps, log.open("a", buffering=1), stream))
                log.touch()  # tells the sweep that it has begun
            for turn in list(turns):
                with torch.cuda.stream(turn.stream), redirect_stdout(turn.log):
                    try:
                        next(turn.steps)
                        continue
                    except (StopIteration, SystemExit):  # finished, or stopped and saved
                        pass
                    except Exception as error:
                        failed = True
                        if (said := cli.sentence(error)) is None:
                            traceback.print_exc(file=turn.log)
                        else:
                            print(f"error: {said}")
                turn.log.close()
                turns.remove(turn)
        return 128 + stopped() if stopped() else int(failed)


def main() -> None:
    """Reads JSON from stdin: at_once, device, checkpoint_every, and tasks, each with config, out and log."""
    given = json.load(sys.stdin)
    tasks = [Task(Config.from_json(t["config"]), Path(t["out"]), Path(t["log"])) for t in given["tasks"]]
    with cli.command_process():
        device = cli.device(given["device"])
        sys.exit(train_together(tasks, given["at_once"], device, given["checkpoint_every"]))


if __name__ == "__main__":
    main()
