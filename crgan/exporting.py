"""Export a model as torch.export programs, which run without crgan."""

import copy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import __version__
from .errors import InputError
from .files import write_atomically
from .loading import open_models


@torch.no_grad()
def export(run_or_model: str | Path | nn.Module, folder: str | Path) -> None:
    """Write `generate.pt2`, `encode.pt2` and a model card, README.md, into `folder`; selection opens such a folder.

    A model with noise takes it as `generate(codes, noise=...)`. Raises InputError where the model is no
    torch.nn.Module. Errors of torch.export, for a model that it cannot trace, pass through.
    """
    folder = Path(folder).expanduser()
    model: Any = run_or_model
    source = type(model).__name__
    if isinstance(run_or_model, str | Path):
        model, source = open_models(run_or_model)[0].model, str(run_or_model)
    if not isinstance(model, nn.Module):
        raise InputError(f"{source} is a {type(model).__name__}; expected a torch.nn.Module")
    if (folder / "config.json").exists():
        raise InputError(f"{folder} is a run folder; give another folder for the export")
    num_noise, prior = int(getattr(model, "num_noise", 0)), getattr(model, "prior", "normal")
    model = copy.deepcopy(model).to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    model.eval().requires_grad_(False)
    images = model.sample(2, 0)
    codes = model.encode(images)
    inputs, generate = [codes], model.generate
    if num_noise:
        inputs, generate = [codes, torch.zeros(2, num_noise)], lambda codes, noise: model.generate(codes, noise=noise)
    folder.mkdir(parents=True, exist_ok=True)
    for name, forward, given in (("generate", generate, inputs), ("encode", model.encode, [images])):
        program: Any = nn.Module()
        program.model, program.forward = model, forward
        batch = tuple({0: torch.export.Dim("batch")} for _ in given)
        graph = torch.export.export(program, tuple(given), dynamic_shapes=batch)
        write_atomically(folder / f"{name}.pt2", partial(torch.export.save, graph, extra_files={"prior": prior}))
    draw = "torch.rand(64, {}) * 2 - 1" if prior == "uniform" else "torch.randn(64, {})"
    write_atomically(folder / "README.md", lambda path: path.write_text(f"""# {source}

Exported by crgan {__version__} with torch {torch.__version__}. `crgan select` takes this folder as a RUN.

    generate, encode = (torch.export.load(file).module() for file in ("generate.pt2", "encode.pt2"))
    images = generate({", ".join(draw.format(x.shape[1]) for x in inputs)})  # {[64, *images.shape[1:]]} in [0, 1]
    codes = encode(images)  # [64, {codes.shape[1]}]; batches may have any size

Training configuration: {getattr(model, "cfg", "unknown")}
"""))  # fmt: skip
