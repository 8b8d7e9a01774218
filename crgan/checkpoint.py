"""Checkpoints without pickle: safetensors and JSON, whole or absent, enough to go on with the same bits.

A run folder holds `config.json` and `checkpoint/step-<n>/` with `model.safetensors`, `optimisers.safetensors` and
`state.json`. A checkpoint is written under a temporary name, renamed, and only then is the one before it removed.
"""

import fcntl
import json
import shutil
import warnings
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .config import Config
from .errors import InputError
from .files import flush, write_json
from .models.networks import InfoGAN
from .models.vae import VAE
from .optim import Optimisers


def build_model(cfg: Config, image_shape: tuple[int, int, int]) -> InfoGAN | VAE:
    """The untrained model of a configuration, its weights fixed by the seed."""
    return (InfoGAN if cfg.model == "infogan-cr" else VAE)(cfg, image_shape)


def load(run: str | Path) -> InfoGAN | VAE:
    """The trained model of a run folder, on the CPU, with `sample`, `generate` and `encode`.

    Warns where its training has not come to its end. Raises InputError where the folder holds no run or its
    checkpoint cannot be read.
    """
    run = Path(run)
    cfg, image_shape = read_config(run)
    model = build_model(cfg, image_shape)
    folder = latest(run)
    if folder is None:
        raise InputError(f"{run} has no checkpoint yet; let its training go on, or leave it out")
    if (step := int(folder.name[5:])) < cfg.steps:
        warnings.warn(f"{run} has trained {step:,} of its {cfg.steps:,} steps", stacklevel=2)
    _load_model(model, folder / "model.safetensors")
    return model.eval()


def open_run(out: Path, cfg: Config, image_shape: tuple[int, int, int], checkpoint_every: int) -> IO[str]:
    """Makes a new run folder, or checks that the one that is there is of this configuration and that no other process
    trains in it; returns its metrics.jsonl, which stays locked until it is closed.

    Raises InputError where it is of another configuration, in use, no run folder, or has lost its checkpoint. Changes
    nothing in a run that is there: what else stands against going on is still to be seen.
    """
    if out.exists() and not (out / "config.json").exists():
        found = list(out.iterdir()) if out.is_dir() else [out]
        if any(p.name[0] != "." and (p.name != "metrics.jsonl" or p.stat().st_size) for p in found):
            raise InputError(f"{out} exists and is no run folder; move it away, or give another --out")
    out.mkdir(parents=True, exist_ok=True)
    file = (out / "metrics.jsonl").open("a+", errors="replace")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"another process trains in {out}; wait for its end, or give another --out") from None
    except OSError:
        pass  # a file system without locks
    if not (out / "config.json").exists():
        write_config(out, cfg, image_shape)
    else:
        before, _ = read_config(out)
        values = [(field.name, getattr(before, field.name), getattr(cfg, field.name)) for field in fields(cfg)]
        changed = [(name, old, new) for name, old, new in values if old != new and not (name == "steps" and new > old)]
        if changed and latest(out) is not None:
            name, old, new = changed[0]
            way = f"--{name.replace('_', '-')} {old}" if len(changed) == 1 else "the preset and the flags of then"
            others = ", ".join(f"{name} = {old} ({new})" for name, old, new in changed[1:])
            raise InputError(
                f"{out} was trained with {name} = {old}, now it is {new}{'; also with ' * bool(others)}{others}; "
                f"give {way} to go on, or another --out"
            )
    if latest(out) is None and (step := _last_step(file)) > checkpoint_every:
        raise InputError(f"{out} has trained {step:,} steps and holds no checkpoint; remove it or give another --out")
    return file


def _last_step(file: IO[str]) -> int:
    """Of the lines in metrics.jsonl."""
    file.seek(0)
    steps = [0]
    for line in file:
        with suppress(ValueError, KeyError, TypeError):  # half a line, left by a kill
            steps.append(int(json.loads(line)["step"]))
    return steps[-1]


def write_config(run: Path, cfg: Config, image_shape: tuple[int, int, int]) -> None:
    write_json(run / "config.json", {"config": cfg.to_json(), "image_shape": list(image_shape)})


def read_config(run: Path) -> tuple[Config, tuple[int, int, int]]:
    path = run / "config.json"
    if not path.is_file():
        raise InputError(
            f"{run} is no run folder: {path} is missing; expected the --out folder of python -m crgan.train"
        )
    content = _read_json(path)
    try:
        channels, height, width = content["image_shape"]
        return Config.from_json(content["config"]), (channels, height, width)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is no configuration of this version of crgan: {error}") from None


def latest(run: Path) -> Path | None:
    """The folder of the newest whole checkpoint of a run."""
    return max(_checkpoints(run), key=lambda folder: int(folder.name[5:]), default=None)


def _checkpoints(run: Path) -> list[Path]:
    """Not a user's copies, whose names differ."""
    return [folder for folder in (run / "checkpoint").glob("step-*") if folder.name[5:].isdecimal()]


def save(run: Path, model: nn.Module, optimisers: Optimisers, state: dict[str, Any]) -> Path:
    """Writes the checkpoint of `state["step"]`; the one before it is kept until this one is whole.

    Raises OSError where the disk is full and InputError where a tensor is not finite: the one before it then stays.
    """
    tensors = {name: value.detach().contiguous() for name, value in model.state_dict().items()}
    for name, value in tensors.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise InputError(
                f"after step {state['step']} the weights {name} are not finite; "
                f"the last good checkpoint is {latest(run) or 'none'}: "
                "start anew in another --out, with smaller learning rates"
            )
    final = run / "checkpoint" / f"step-{state['step']:09d}"
    temporary = final.with_name("incomplete")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        _save_file(tensors, temporary / "model.safetensors")
        _save_file(_optimiser_tensors(optimisers), temporary / "optimisers.safetensors")
        write_json(temporary / "state.json", state)
        temporary.rename(final)
        flush(final.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    for folder in _checkpoints(run):
        if folder != final:
            shutil.rmtree(folder)
    return final


def restore(folder: Path, model: nn.Module, optimisers: Optimisers) -> dict[str, Any]:
    """Loads a checkpoint in place and returns its state."""
    _load_model(model, folder / "model.safetensors")
    path = folder / "optimisers.safetensors"
    saved = _load_file(path)
    kinds = ("step", "exp_avg", "exp_avg_sq")
    expected = {
        f"{name}.{i}.{kind}"
        for name, optimiser in optimisers.items()
        if f"{name}.0.step" in saved  # H has none while the regularizer is off
        for i in range(sum(len(group["params"]) for group in optimiser.param_groups))
        for kind in kinds
    }
    if wrong := sorted(expected ^ set(saved)):
        raise InputError(f"{path} is of another model: its tensors differ in {wrong[0]}; start with a new --out")
    for name, optimiser in optimisers.items():
        if f"{name}.0.step" not in saved:
            continue
        content = optimiser.state_dict()
        for i, parameter in enumerate(p for group in optimiser.param_groups for p in group["params"]):
            entry = {kind: saved[f"{name}.{i}.{kind}"] for kind in kinds}
            if any(value.dim() and value.shape != parameter.shape for value in entry.values()):
                raise InputError(f"{path} is of another model: its {name}.{i} has an unexpected shape")
            # The fused Adam walks raw memory: its moments must lie as the weights do (channels_last).
            content["state"][i] = {
                key: torch.empty_like(parameter).copy_(value) if value.dim() else value.to(parameter.device)
                for key, value in entry.items()
            }
        optimiser.load_state_dict(content)
    state = _read_json(folder / "state.json")
    for name in ("step", "metrics_bytes"):
        if not isinstance(value := state.get(name), int) or value < 0:
            raise InputError(f"{folder / 'state.json'} has {name} {value}, expected a number; start with a new --out")
    return state


def _optimiser_tensors(optimisers: Optimisers) -> dict[str, Tensor]:
    return {
        f"{name}.{i}.{key}": value.detach().contiguous()
        for name, optimiser in optimisers.items()
        for i, entry in optimiser.state_dict()["state"].items()
        for key, value in entry.items()
    }


def _save_file(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        save_file(tensors, path)
    except SafetensorError as error:  # the library wraps the operating system's error in its own
        raise OSError(0, str(error), str(path)) from None
    flush(path)


def _load_file(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{path} cannot be read as a checkpoint ({error}); restore it or start with a new --out"
        ) from None


def _load_model(model: nn.Module, path: Path) -> None:
    saved, expected = _load_file(path), model.state_dict()
    wrong = sorted(set(saved) ^ set(expected)) or [
        k for k, value in expected.items() if (saved[k].shape, saved[k].dtype) != (value.shape, value.dtype)
    ]
    if wrong:
        raise InputError(f"{path} is of another model: its tensors differ in {wrong[0]}; start with a new --out")
    model.load_state_dict(saved)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
        if isinstance(content, dict):
            return content
        raise ValueError("not an object")
    except ValueError as error:
        raise InputError(f"{path} is not readable JSON ({error}); restore it or start with a new --out") from None
