"""`crgan export RUN DIR`: a model as torch.export programs, which run without crgan."""

import copy
import functools
import inspect
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import __version__, cli
from .errors import InputError
from .files import write_atomically
from .loading import open_models

CARD = """# {name}

Exported by crgan {crgan} with torch {torch}. Batches may have any size; `crgan select` takes this folder as a RUN.

```python
import torch

generate = torch.export.load("generate.pt2").module()
encode = torch.export.load("encode.pt2").module()
images = generate({inputs})  # [64, {shape}] in [0, 1]
codes = encode(images)  # [64, {num_codes}]
```

Settings of its training: {settings}
"""


class _Program(nn.Module):
    """One method of a model as the forward pass of a module, which torch.export takes."""

    def __init__(self, model: nn.Module, method: str):
        super().__init__()
        self.model, self.method = model, method
        self.takes_noise = "noise" in inspect.signature(getattr(model, method)).parameters

    def forward(self, given: Tensor, noise: Tensor | None = None) -> Tensor:
        function = getattr(self.model, self.method)
        if not self.takes_noise:
            return function(given)
        return function(given, noise=given.new_zeros(given.shape[0], 0) if noise is None else noise)


@torch.no_grad()
def export(run_or_model: str | Path | nn.Module, folder: str | Path) -> None:
    """Write `generate.pt2`, `encode.pt2` and a model card, README.md, into `folder`; selection opens such a folder.

    Raises InputError where the model is no torch.nn.Module, where it takes noise but its `generate` has no argument
    `noise`, and where torch.export does not understand it.
    """
    opened = not isinstance(run_or_model, nn.Module)
    model: Any = open_models([str(run_or_model)])[0].model if opened else run_or_model
    name, folder = str(run_or_model) if opened else type(model).__name__, Path(folder).expanduser()
    if not isinstance(model, nn.Module):
        raise InputError(f"{name} is a {type(model).__name__}; expected a torch.nn.Module")
    num_noise, prior = int(getattr(model, "num_noise", 0)), getattr(model, "prior", "normal")
    if num_noise and not _Program(model, "generate").takes_noise:
        raise InputError(f"{name} has num_noise {num_noise}; expected a method generate(codes, noise=...)")
    if (folder / "config.json").exists():
        raise InputError(f"{folder} is a run folder; give another for what is exported")
    model = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    images = model.sample(2, 0)
    codes = model.encode(images)
    inputs = (codes, torch.zeros(2, num_noise)) if num_noise else (codes,)
    folder.mkdir(parents=True, exist_ok=True)
    for method, given in (("generate", inputs), ("encode", (images,))):
        batch = tuple({0: torch.export.Dim("batch")} for _ in given)
        try:
            program = torch.export.export(_Program(model, method), given, dynamic_shapes=batch)
        except Exception as error:  # torch raises many kinds
            raise InputError(f"torch.export cannot take {name}.{method}: {str(error).splitlines()[0]}") from error
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "No complete tensor")  # said of channels-last weights, which are whole
            save = functools.partial(torch.export.save, program, extra_files={"prior": prior})
            write_atomically(folder / f"{method}.pt2", save)
    draw = "torch.rand(64, {}) * 2 - 1" if prior == "uniform" else "torch.randn(64, {})"
    card = CARD.format(
        name=Path(name).name, crgan=__version__, torch=torch.__version__, num_codes=codes.shape[1],
        inputs=", ".join(draw.format(x.shape[1]) for x in inputs), shape=", ".join(map(str, images.shape[1:])),
        settings=getattr(model, "cfg", "unknown"),
    )  # fmt: skip
    write_atomically(folder / "README.md", lambda path: path.write_text(card))


def export_run(run: str, folder: Path, /) -> None:
    """Write a model as torch.export programs, with a model card.

    Args:
        run: Run folder of crgan.train, or module:function.
        folder: Where to write generate.pt2, encode.pt2 and README.md.
    """
    export(run, folder)
    print(f"wrote {folder}/: generate.pt2, encode.pt2, README.md")


def main(args: Sequence[str] | None = None) -> None:
    cli.run("crgan.export", export_run, args)


if __name__ == "__main__":
    main()
