"""Run folders without pickle: safetensors and JSON, whole or absent, enough to continue with the same bits.

A run folder holds `config.json` and `checkpoint/step-<n>/` with `model.safetensors`, `optimisers.safetensors` and
`state.json`. A checkpoint is written under a temporary name and renamed; only then is the previous one removed.
`checkpoint/before-cr/` keeps the state just before the contrastive regularizer starts: the paper's InfoGAN (modified).
"""

import json
import platform
import shlex
import shutil
import sys
import time
import warnings
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as deserialise
from safetensors.torch import save as serialise
from torch import Tensor, nn

from .config import Config
from .device import float32_defaults, has_bfloat16
from .errors import InputError
from .files import flush, write_atomically, write_json
from .models import Build, Model, Optimisers, Shape, build_model

BEFORE_CR = "before-cr"
FREE = {"root", "eval_every"}
"""Fields that may change when a run continues. The root says where the data are, not what they are."""
FREE_AFTER_TRUNK = FREE | {"steps", "cr_weight", "gap", "gap_switch", "gap_after", "h_norm", "lr_h", "threads"}
"""Fields that may differ between a run and the trunk that it starts from."""
MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def load(run: str | Path, device: str | torch.device = "cpu", build: Build | None = None) -> Model:
    """Return the trained model of a run folder, with `sample`, `generate` and `encode`, in eval mode.

    `run` may also be the `checkpoint/before-cr` folder of a run. `build` makes the model of a run that was trained with
    networks of your own. Warns if training has not finished. Raises InputError if the folder holds no run, or its
    checkpoint cannot be read.
    """
    run = Path(run).expanduser()
    cfg, image_shape = read_config(run.parent.parent if run.name == BEFORE_CR else run)
    model = new_model(cfg, image_shape, build)
    folder = run if run.name == BEFORE_CR else latest(run)
    if folder is None:
        raise InputError(f"{run} has no checkpoint yet; let its training continue, or leave it out")
    try:
        _load_model(model, folder / "model.safetensors")
    except InputError:
        if folder.exists():
            raise
        return load(run, device, build)  # training has just replaced this checkpoint by a newer one
    if folder != run and (step := _step(folder)) < cfg.steps:
        warnings.warn(f"{run} has trained {step:,} of its {cfg.steps:,} steps", stacklevel=2)
    return model.for_use().to(device)


def new_model(cfg: Config, image_shape: Shape, build: Build | None = None) -> Model:
    """Return the untrained model, in float32 on the CPU whatever torch's defaults are."""
    with float32_defaults(), torch.device("cpu"):
        return (build or build_model)(cfg, image_shape)


# ---------------------------------------------------------------- config.json


def write_config(run: Path, cfg: Config, image_shape: Shape, about: dict[str, Any] | None = None) -> None:
    """Write config.json: the configuration, the shape of the images, and where the run was made (`about`)."""
    write_json(run / "config.json", {"config": cfg.to_json(), "image_shape": list(image_shape), **(about or {})})


def read_config(run: Path) -> tuple[Config, Shape]:
    """Raises InputError if the folder holds no run, or its config.json is not of this version of crgan."""
    path = run / "config.json"
    if not path.is_file():
        raise InputError(f"{run} is no run folder: it has no config.json; expected the --out of python -m crgan.train")
    content = read_json(path)
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
    if not (out / "config.json").exists():
        found = out.iterdir() if out.is_dir() else [out] * out.exists()
        if any(path.name[0] != "." for path in found):
            raise InputError(f"{out} exists and is no run folder; move it away, or give another --out")
        return cfg
    if latest(out) is None:  # it failed before its first checkpoint
        return cfg
    before, _ = read_config(out)
    precision = before.precision if cfg.precision == "auto" else cfg.precision
    cfg = replace(cfg, precision=precision, threads=cfg.threads or before.threads)
    _refuse_changes(out, before, cfg, FREE | {"steps"} if cfg.steps > before.steps else FREE)
    if read_json(out / "config.json").get("data_identity", data_identity) != data_identity:
        raise InputError(f"the images of {cfg.data} have changed since {out} was trained; give another --out")
    return cfg


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
    return {
        "source": dataset.source,
        "data_identity": dataset.identity,
        "made_with": {
            "crgan": version("crgan"),
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine() + " CPU",
            "threads": cfg.threads,
            "date": time.strftime("%Y-%m-%d %H:%M"),
            "command": shlex.join(["python", "-m", "crgan.train", *sys.argv[1:]]),
        },
    }


def _refuse_changes(run: Path, before: Config, after: Config, free: set[str]) -> None:
    """Raise InputError for a field that differs from the run's and is not `free` to."""
    for name, old in vars(before).items():
        if name not in free and (new := getattr(after, name)) != old:
            flag = f"--{name.replace('_', '-')} {old}"
            raise InputError(f"{run} has {name} = {old}, now it is {new}; give {flag}, or start anew in another --out")


def read_json(path: Path) -> dict[str, Any]:
    """Raises InputError if the file holds no JSON object."""
    try:
        content = json.loads(path.read_text())
        if isinstance(content, dict):
            return content
        raise ValueError("not an object")
    except ValueError as error:
        raise InputError(f"{path} is not readable JSON ({error}); restore it or start with a new --out") from None


# ---------------------------------------------------------------- checkpoints


def latest(run: Path) -> Path | None:
    """Return the folder of the newest whole checkpoint of a run."""
    return max(_checkpoints(run), key=_step, default=None)


def _checkpoints(run: Path) -> list[Path]:
    """Return the checkpoints of a run, but not a user's copies, whose names differ."""
    return [folder for folder in (run / "checkpoint").glob("step-*") if folder.name[5:].isdecimal()]


def _step(folder: Path) -> int:
    return int(folder.name[5:])


def diverged(run: Path, what: str) -> InputError:
    last = latest(run) or "none"
    return InputError(f"{what}; the last good checkpoint is {last}: start anew in another --out, with smaller rates")


def save(run: Path, model: nn.Module, optimisers: Optimisers, state: dict[str, Any], name: str = "") -> Path:
    """Write the checkpoint of `state["step"]`, and remove the previous one once this one is whole.

    A checkpoint with a `name` is kept. Raises OSError if the disk is full and InputError if a weight is not finite; the
    previous checkpoint then stays.
    """
    tensors = {key: value.detach().contiguous() for key, value in model.state_dict().items()}
    for key, value in tensors.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise diverged(run, f"after step {state['step']} the weights {key} are not finite")
    final = run / "checkpoint" / (name or f"step-{state['step']:09d}")
    temporary = final.with_name("incomplete")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    write_atomically(temporary / "model.safetensors", lambda path: path.write_bytes(serialise(tensors)))
    moments = {
        f"{name}.{i}.{key}": value.detach().contiguous()
        for name, optimiser in optimisers.items()
        for i, entry in optimiser.state_dict()["state"].items()
        for key, value in entry.items()
    }
    write_atomically(temporary / "optimisers.safetensors", lambda path: path.write_bytes(serialise(moments)))
    write_json(temporary / "state.json", state)
    if name:  # of the same step, if the run was killed after it
        shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)
    flush(final.parent)
    for folder in _checkpoints(run):
        if not name and folder != final:
            shutil.rmtree(folder)
    return final


def restore(folder: Path, model: nn.Module, optimisers: Optimisers, keep_h: bool = False) -> dict[str, Any]:
    """Load a checkpoint in place, with `keep_h` all but H, and return its state.

    Raises InputError if it is of another model or damaged.
    """
    _load_model(model, folder / "model.safetensors", keep_h)
    wanted = {name: optimiser for name, optimiser in optimisers.items() if not (keep_h and name == "contrastive")}
    _load_optimisers(wanted, folder / "optimisers.safetensors")
    state = read_json(folder / "state.json")
    if not all(isinstance(state.get(name), int) for name in ("step", "metrics_bytes")):
        raise InputError(f"{folder / 'state.json'} is damaged: {state}; start with a new --out")
    return state


def restore_trunk(run: Path, cfg: Config, model: nn.Module, optimisers: Optimisers) -> dict[str, Any]:
    """Start from the state of `run` just before its regularizer: all but H is loaded. Returns that state.

    Raises InputError if `run` has no such state, or `cfg` differs in more than the regularizer and the length.
    """
    folder = run / "checkpoint" / BEFORE_CR
    if not folder.is_dir():
        raise InputError(f"{folder} is missing; expected --from RUN of a run whose regularizer has started")
    _refuse_changes(run, read_config(run)[0], cfg, FREE_AFTER_TRUNK)
    return restore(folder, model, optimisers, keep_h=True)


def _load_model(model: nn.Module, path: Path, keep_h: bool = False) -> None:
    saved = _load_file(path)
    if keep_h:
        saved = {key: value for key, value in saved.items() if not key.startswith("contrastive.")}
        saved |= {key: value for key, value in model.state_dict().items() if key.startswith("contrastive.")}
    try:
        model.load_state_dict(saved)
    except RuntimeError as error:
        what = str(error).partition("\n")[2].strip().partition("\n")[0]
        raise InputError(f"{path} is of another model: {what} Start with a new --out, or give build") from None


def _load_optimisers(optimisers: Optimisers, path: Path) -> None:
    saved = _load_file(path)
    for name, optimiser in optimisers.items():
        if f"{name}.0.step" not in saved:  # H has none while the regularizer is off
            continue
        content = optimiser.state_dict()
        for i, parameter in enumerate(p for group in optimiser.param_groups for p in group["params"]):
            entry = {key: saved.get(f"{name}.{i}.{key}", torch.empty(0)) for key in MOMENTS}
            if any(value.dim() and value.shape != parameter.shape for value in entry.values()):
                raise InputError(f"{path} is of another model: its {name}.{i} differs; start with a new --out")
            # The fused Adam walks raw memory: its moments must lie as the weights do (channels_last).
            content["state"][i] = {
                key: torch.empty_like(parameter).copy_(value) if value.dim() else value.to(parameter.device)
                for key, value in entry.items()
            }
        optimiser.load_state_dict(content)


def _load_file(path: Path) -> dict[str, Tensor]:
    try:
        return deserialise(path.read_bytes())
    except (FileNotFoundError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read as a checkpoint ({error}); restore it or give a new --out") from None
