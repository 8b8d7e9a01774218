"""Run folders without pickle: safetensors and JSON, written whole or not at all, enough to resume bit for bit.

A run folder holds `config.json`, `metrics.jsonl` and `checkpoint/step-<n>/` with `model.safetensors`,
`optimisers.safetensors` and `state.json`. `checkpoint/before-cr/` keeps the state just before the contrastive
regularizer starts: the paper's InfoGAN (modified).
"""

import json
import platform
import shlex
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import nn

from .config import Config
from .device import has_bfloat16
from .errors import InputError
from .files import named_errors, write_atomically, write_json
from .models import Build, Model, Shape, build_model
from .models.model import Optimisers

BEFORE_CR = "before-cr"
STEPS = "step-" + 9 * "[0-9]"  # checkpoints, but not a user's copies, whose names differ
MOMENTS = ("step", "exp_avg", "exp_avg_sq")
# Fields that may change when a run continues. The root says where the data are, not what they are.
FREE = {"root", "eval_every"}
# Fields that may differ between a run and the trunk that it starts from.
FREE_AFTER_TRUNK = FREE | {"steps", "cr_weight", "gap", "gap_switch", "gap_after", "h_norm", "lr_h", "threads"}


def load(run: str | Path, device: str | torch.device = "cpu", build: Build | None = None) -> Model:
    """Return the trained model of a run folder, with `sample`, `generate` and `encode`, in eval mode.

    `run` may also be the `checkpoint/before-cr` folder of a run. `build` makes the model of a run that was trained with
    networks of your own. Warns if training has not finished. Raises InputError if the folder holds no run, or its
    checkpoint cannot be read.
    """
    run = Path(run).expanduser()
    before_cr = run.name == BEFORE_CR
    cfg, image_shape = read_config(run.parent.parent if before_cr else run)
    model = build_model(cfg, image_shape, build)
    folder = run if before_cr else latest(run)
    if folder is None:
        raise InputError(f"{run} has no checkpoint yet; let its training continue, or leave it out")
    try:
        _load_model(model, folder)
    except InputError:
        if folder.exists():
            raise
        return load(run, device, build)  # training has just replaced this checkpoint by a newer one
    if not before_cr and (step := int(folder.name[5:])) < cfg.steps:
        warnings.warn(f"{run} has trained {step:,} of its {cfg.steps:,} steps", stacklevel=2)
    return model.for_use().to(device)


def write_config(run: Path, cfg: Config, image_shape: Shape, about: dict[str, Any] | None = None) -> None:
    """Write config.json: the configuration, the shape of the images, and `about`, from `describe`."""
    write_json(run / "config.json", {"config": vars(cfg), "image_shape": list(image_shape), **(about or {})})


def read_config(run: Path) -> tuple[Config, Shape]:
    """Return configuration and image shape; raise InputError if the file is missing or of another version."""
    path = run / "config.json"
    if not path.is_file():
        raise InputError(f"{run} is no run folder: it has no config.json; expected the --out of python -m crgan.train")
    content = read(path)
    try:
        channels, height, width = content["image_shape"]
        return Config.from_json(content["config"]), (channels, height, width)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is no configuration of this version of crgan: {error}") from None


def continued_config(out: Path, cfg: Config, data_identity: str) -> Config:
    """Return the configuration with which a run continues in `out`, or `cfg` where it starts.

    What `cfg` leaves to the machine, precision and threads, is taken from the run. Raises InputError if `out` holds
    something else, a run of another configuration, or one on other data.
    """
    if latest(out) is None:  # new, or it failed before its first checkpoint
        found = [out] if out.is_file() else [*out.glob("[!.]*")]
        if found and not (out / "config.json").exists():
            raise InputError(f"{out} exists and is no run folder; move it away, or give another --out")
        return cfg
    before, _ = read_config(out)
    precision = before.precision if cfg.precision == "auto" else cfg.precision
    cfg = replace(cfg, precision=precision, threads=cfg.threads or before.threads)
    refuse_changes(out, cfg, FREE | {"steps"} if cfg.steps > before.steps else FREE)
    if read(out / "config.json").get("data_identity", data_identity) != data_identity:
        raise InputError(f"the images of {cfg.data} have changed since {out} was trained; give another --out")
    return cfg


def refuse_changes(run: Path, cfg: Config, free: set[str]) -> None:
    """Raise InputError for a field that differs from the run's and is not `free` to."""
    for name, old in vars(read_config(run)[0]).items():
        if name not in free and (new := getattr(cfg, name)) != old:
            flag = f"--{name.replace('_', '-')} {old}"
            raise InputError(f"{run} has {name} = {old}, now it is {new}; give {flag}, or start anew in another --out")


def resolve(cfg: Config, device: torch.device, image_shape: tuple[int, ...] | None = None) -> Config:
    """Return `cfg` with the values that "auto" stands for on this machine, and an absolute root."""
    if cfg.root:
        cfg = replace(cfg, root=str(Path(cfg.root).expanduser().resolve()))
    if cfg.precision == "auto":
        cfg = replace(cfg, precision="bfloat16" if has_bfloat16(device) else "float32")
    if not cfg.threads and image_shape is not None:
        cfg = replace(cfg, threads=1 if max(image_shape[1:]) <= 32 else torch.get_num_threads())
    return cfg


def describe(cfg: Config, device: torch.device, dataset: Any) -> dict[str, Any]:
    """Return what config.json records of the data and of the machine."""
    made_with = {
        "crgan": version("crgan"),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine() + " CPU",
        "threads": cfg.threads,
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "command": shlex.join(["python", "-m", "crgan.train", *sys.argv[1:]]),
    }
    return {"source": dataset.source, "data_identity": dataset.identity, "made_with": made_with}


def read_log(run: Path) -> list[dict[str, Any]]:
    """Return the rows of metrics.jsonl. Leaves out lines that are damaged: a kill may leave half of one."""
    path, rows = run / "metrics.jsonl", list[Any]()
    for line in path.read_text(errors="replace").splitlines() if path.is_file() else []:
        with suppress(ValueError):
            rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict) and isinstance(row.get("step"), int)]


class Log:
    """metrics.jsonl, one object per line, and the same values as TensorBoard events.

    The run continues from `step`: of the earlier `rows`, those of later steps are removed and will be written again.
    """

    def __init__(self, out: Path, step: int, rows: list[dict[str, Any]]):
        path = out / "metrics.jsonl"
        text = "".join(json.dumps(row) + "\n" for row in rows if row["step"] <= step)
        write_atomically(path, lambda temporary: temporary.write_text(text))
        self.file = path.open("a")
        self.board: Any = None
        with suppress(ImportError, UnicodeError):  # not installed, or it cannot handle the folder's name
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(out), purge_step=step + 1 if step else None)

    def write(self, step: int, values: dict[str, float], **pictures: Any) -> None:
        if values:
            with named_errors(self.file.name):
                self.file.write(json.dumps({"step": step, **values}) + "\n")
                self.file.flush()
        if self.board:
            for name, value in values.items():
                self.board.add_scalar(name, value, step)
            for name, picture in pictures.items():
                self.board.add_image(name, np.asarray(picture), step, dataformats="HWC")

    def close(self) -> None:
        if self.board:
            self.board.close()
        self.file.close()


def latest(run: Path) -> Path | None:
    """Return the folder of the newest whole checkpoint of a run."""
    return max((run / "checkpoint").glob(STEPS), default=None)


def diverged(run: Path, what: str) -> InputError:
    last = latest(run) or "none"
    return InputError(f"{what}; the last good checkpoint is {last}: start anew in another --out, with smaller rates")


def save(run: Path, model: nn.Module, optimisers: Optimisers, state: dict[str, Any], name: str = "") -> Path:
    """Write the checkpoint of `state["step"]`, and then remove the previous one. A checkpoint with a `name` is kept.

    Raises OSError if the disk is full and InputError if a weight is not finite; the previous checkpoint then stays.
    """
    weights = model.state_dict()
    if wrong := [key for key, value in weights.items() if not value.isfinite().all()]:
        raise diverged(run, f"after step {state['step']} the weights {wrong[0]} are not finite")
    moments = {
        f"{network}.{i}.{key}": value
        for network, optimiser in optimisers.items()
        for i, entry in optimiser.state_dict()["state"].items()
        for key, value in entry.items()
    }
    final = run / "checkpoint" / (name or f"step-{state['step']:09d}")
    if not name and final.exists():  # saved already: the same step has the same bits
        return final
    temporary = final.with_name("incomplete")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for file, tensors in (("model", weights), ("optimisers", moments)):
        content = safetensors.torch.save({key: value.detach().contiguous() for key, value in tensors.items()})
        write_atomically(temporary / f"{file}.safetensors", partial(Path.write_bytes, data=content))
    write_json(temporary / "state.json", state)
    if name:  # left from a run that was killed after this step
        shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)
    if not name:
        for folder in {*final.parent.glob(STEPS)} - {final}:
            shutil.rmtree(folder)
    return final


def restore(folder: Path, model: nn.Module, optimisers: Optimisers, skip: tuple[str, ...] = ()) -> dict[str, Any]:
    """Load a checkpoint in place, except the networks `skip`; return its state. Raises InputError if it is damaged."""
    _load_model(model, folder, skip)
    saved = read(path := folder / "optimisers.safetensors", safetensors.torch.load)
    for name, optimiser in optimisers.items():
        if f"{name}.0.step" not in saved or name in skip:  # H has none while the regularizer is off
            continue
        for i, parameter in enumerate(p for group in optimiser.param_groups for p in group["params"]):
            step, *moments = (saved.get(f"{name}.{i}.{key}", torch.empty(0)) for key in MOMENTS)
            if any(value.shape != parameter.shape for value in moments):
                raise InputError(f"{path} is of another model: its {name}.{i} differs; give a new --out")
            # The fused Adam walks raw memory: its moments need the memory layout of the weights (channels_last).
            moments = [torch.empty_like(parameter).copy_(value) for value in moments]
            optimiser.state[parameter] = dict(zip(MOMENTS, [step.to(parameter.device), *moments]))
    state = read(folder / "state.json")
    if not isinstance(state.get("step"), int):
        raise InputError(f"{folder / 'state.json'} is damaged: {state}; start with a new --out")
    return state


def _load_model(model: nn.Module, folder: Path, skip: tuple[str, ...] = ()) -> None:
    path = folder / "model.safetensors"
    saved = {key: value for key, value in read(path, safetensors.torch.load).items() if not key.startswith(skip)}
    saved |= {key: value for key, value in model.state_dict().items() if key.startswith(skip)}
    try:
        model.load_state_dict(saved)
    except RuntimeError as error:
        what = str(error).partition("\n")[2].strip().partition("\n")[0]
        raise InputError(f"{path} is of another model: {what} Start with a new --out, or give build") from None


def read(path: Path, parse: Callable[[bytes], Any] = json.loads) -> dict[str, Any]:
    """Return the content of a file, JSON unless `parse` says otherwise; raise InputError if it is damaged."""
    try:
        content = parse(path.read_bytes())
        if isinstance(content, dict):
            return content
        raise ValueError("it holds no object")
    except (FileNotFoundError, ValueError, safetensors.SafetensorError) as error:
        raise InputError(f"{path} cannot be read ({error}); restore it or start with a new --out") from None
