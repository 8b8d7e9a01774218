"""How a run is set up: its configuration, its folder, and what config.json records of data and machine."""

import platform
import shlex
import sys
import time
from dataclasses import fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from . import checkpoint
from .config import PRESETS, Config
from .device import has_bfloat16
from .errors import check_name


def base_config(preset: str) -> tuple[str, Config]:
    """Return the name and configuration of a preset, or those of the config.json of a run."""
    path = Path(preset).expanduser()
    if path.name == "config.json":
        return path.parent.name, checkpoint.read_config(path.parent)[0]
    check_name("preset", preset, PRESETS)
    return preset, PRESETS[preset]


def default_out(preset: str, cfg: Config) -> Path:
    """Return runs/<preset>, with the fields that differ from the preset, and the seed."""
    base = PRESETS.get(preset, cfg)
    ignored = ("seed", "steps", "root", "eval_every", "threads")
    changed = [f.name for f in fields(cfg) if getattr(base, f.name) != getattr(cfg, f.name) and f.name not in ignored]
    name = ",".join([preset, *(f"{field}={getattr(cfg, field)}" for field in changed)])
    return Path("runs") / f"{name.replace('/', '_')[:200]}-seed{cfg.seed}"


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
