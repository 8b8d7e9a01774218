"""Opening models of any kind for selection and metrics."""

import importlib
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .errors import InputError
from .fingerprint import fingerprint_of, hash_files


class Member:
    """A model as selection sees it: the contract of docs/selection.md, checked where it is used."""

    def __init__(self, name: str, model: Any, fingerprint: str | None = None):
        missing = [verb for verb in ("sample", "generate", "encode") if not callable(getattr(model, verb, None))]
        if missing:
            raise InputError(f"{name} has no {missing[0]}(); expected a model with sample, generate and encode")
        if isinstance(model, nn.Module):
            model.eval()
        self.name, self.model = name, model
        self.fingerprint = fingerprint or fingerprint_of(model)
        held = [*model.parameters(), *model.buffers()][:1] if isinstance(model, nn.Module) else []
        self.device = torch.device(getattr(model, "device", held[0].device if held else "cpu"))
        self.num_noise = int(getattr(model, "num_noise", 0))
        self.prior = getattr(model, "prior", "normal")
        if self.prior not in ("uniform", "normal"):
            raise InputError(f"{name} has the prior {self.prior!r}, expected 'uniform' (in [-1, 1]) or 'normal'")
        shape, num_codes = getattr(model, "image_shape", None), getattr(model, "num_codes", None)
        if shape is None or num_codes is None:
            with torch.inference_mode():
                images = self._checked("sample", model.sample(2, 0), (2, None, None, None))
                shape = shape or images.shape[1:]
                num_codes = num_codes or self._checked("encode", model.encode(images), (2, None)).shape[-1]
        self.image_shape, self.num_codes = tuple(shape), int(num_codes)

    @property
    def normal(self) -> bool:
        return self.prior == "normal"

    def sample(self, n: int, seed: int) -> Tensor:
        return self._images("sample", self.model.sample(n, seed), n)

    def generate(self, codes: Tensor, seed: int) -> Tensor:
        codes = codes.to(self.device)
        images = self.model.generate(codes, seed=seed) if self.num_noise else self.model.generate(codes)
        return self._images("generate", images, len(codes))

    def encode(self, images: Tensor) -> Tensor:
        return self._checked("encode", self.model.encode(images.to(self.device)), (len(images), self.num_codes))

    def check_range(self, images: Tensor) -> None:
        """Warns of images that the other models' encoders were not made for."""
        low, high = (value.item() for value in images.aminmax())
        if low < -0.01 or high > 1.01:
            warnings.warn(f"{self.name} makes images from {low:.3g} to {high:.3g}; expected 0 to 1", stacklevel=2)

    def check_data(self, dataset: Any) -> None:
        """Raises InputError where this model cannot encode the images of `dataset`."""
        if tuple(dataset.image_shape) != self.image_shape:
            raise InputError(
                f"{self.name} takes images {list(self.image_shape)}, those of {dataset.name} are "
                f"{list(dataset.image_shape)}; expected the data that it was trained on, or data of that shape"
            )

    def _images(self, verb: str, images: Tensor, n: int) -> Tensor:
        return self._checked(verb, images, (n, *self.image_shape))

    def _checked(self, verb: str, given: Any, shape: tuple[int | None, ...]) -> Tensor:
        expected = ["any" if size is None else size for size in shape]
        if not isinstance(given, Tensor):
            raise InputError(f"{self.name}.{verb} gave a {type(given).__name__}, expected a torch.Tensor {expected}")
        if not given.is_floating_point():
            raise InputError(f"{self.name}.{verb} gave a tensor of {given.dtype}, expected floats")
        if given.dim() != len(shape) or any(want not in (None, have) for want, have in zip(shape, given.shape)):
            raise InputError(f"{self.name}.{verb} gave a tensor {list(given.shape)}, expected {expected}")
        return given


def open_models(runs: Sequence[str], device: str | torch.device = "cpu") -> list[Member]:
    """The models of the RUN arguments of a command, named after them.

    A RUN is the folder of a training run; a folder with `generate.pt2` and `encode.pt2` (torch.export.save); a
    TorchScript file (.pt, .ts) with the methods `generate` and `encode`; or `module:function`, which returns a
    model, a sequence or a mapping of models. Archives and modules run as code: open only those that you trust.

    Leaves out, with a warning, runs without a checkpoint. Raises InputError for what is none of these, cannot be read
    or breaks the contract, and for a model or a name given twice.
    """
    members: list[Member] = []
    for run in runs:
        members.extend(members_of(run, torch.device(device)))
    if runs and not members:
        raise InputError(f"{', '.join(runs)} hold no model; expected runs that have trained")
    seen: dict[str, Member] = {}
    named: dict[str, Member] = {}
    for member in members:
        twin = seen.setdefault(member.fingerprint, member)
        if twin is not member:
            raise InputError(f"{twin.name} and {member.name} are the same model; name each model of a pool once")
        if named.setdefault(member.name, member) is not member:
            raise InputError(f"two models are called {member.name}; give them names of their own")
    return members


def members_of(run: str, device: torch.device) -> Iterator[Member]:
    """Those of one RUN argument; none, with a warning, of a run without a checkpoint."""
    run = run.rstrip("/")
    path = Path(run)
    if (path / "generate.pt2").is_file() or (path / "encode.pt2").is_file():
        yield Member(run, _exported(path, device), hash_files(path / "generate.pt2", path / "encode.pt2"))
    elif path.is_dir():
        from .checkpoint import latest, load, read_config

        read_config(path)  # else it is no run
        if latest(path) is None:
            warnings.warn(f"{run} has no checkpoint, as a run that failed; it is left out", stacklevel=2)
            return
        yield Member(run, load(path).to(device))
    elif path.suffix in (".h5", ".hdf5"):
        raise InputError(f"{run} holds codes, not a model; give it to crgan.select alone, without other RUNs")
    elif path.suffix == ".pt2":
        raise InputError(f"{run} is one half of an exported model; give its folder, {path.parent}")
    elif path.is_file():
        yield Member(run, _script(path, device), hash_files(path))
    elif ":" in run:
        for name, model in _imported(run):
            yield Member(name, model.to(device) if isinstance(model, nn.Module) else model)
    else:
        raise InputError(f"there is no {run}; expected a run folder, a model archive or module:function")


def _imported(run: str) -> Iterator[tuple[str, Any]]:
    module, _, function = run.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")  # `python -m` has it, an installed command may not
    try:
        found = getattr(importlib.import_module(module), function)
        models = found()
    except Exception as error:  # the user's code may raise anything
        raise InputError(
            f"{run} gives no models ({type(error).__name__}: {error}); expected module:function, without arguments"
        ) from error
    if isinstance(models, Mapping):
        yield from ((str(name), model) for name, model in models.items())
    elif isinstance(models, Sequence):
        yield from ((f"{run}[{i}]", model) for i, model in enumerate(models))
    else:
        yield run, models


class _Archive:
    """generate and encode of a saved graph, with draws from its prior."""

    def __init__(self, generate: Any, encode: Any, num_codes: int, num_noise: int, prior: str, device: torch.device):
        self._generate, self._encode, self.device = generate, encode, device
        self.num_codes, self.num_noise, self.prior = num_codes, num_noise, prior

    def generate(self, codes: Tensor, seed: int = 0) -> Tensor:
        if not self.num_noise:
            return self._generate(codes)
        return self._generate(codes, self._draw(len(codes), self.num_noise, seed).to(self.device))

    def sample(self, n: int, seed: int) -> Tensor:
        drawn = self._draw(n, self.num_codes + self.num_noise, seed).to(self.device)
        return self._generate(*drawn.split([self.num_codes, self.num_noise], 1)[: 1 + (self.num_noise > 0)])

    def encode(self, images: Tensor) -> Tensor:
        return self._encode(images)

    def _draw(self, n: int, size: int, seed: int) -> Tensor:
        draw = torch.Generator().manual_seed(seed)
        if self.prior == "normal":
            return torch.randn(n, size, generator=draw)
        return torch.rand(n, size, generator=draw) * 2 - 1


def _exported(folder: Path, device: torch.device) -> _Archive:
    from torch.export.passes import move_to_device_pass

    for name in ("generate.pt2", "encode.pt2"):
        if not (folder / name).is_file():
            raise InputError(f"{folder} has no {name}; expected generate.pt2 and encode.pt2 of torch.export.save")
    extra = {"prior": ""}
    try:
        generate = torch.export.load(folder / "generate.pt2", extra_files=extra)
        encode = torch.export.load(folder / "encode.pt2")
    except Exception as error:  # torch raises a different one for each way in which a file can be broken
        raise InputError(f"{folder} cannot be opened with torch.export.load ({error})") from None
    shapes = []
    for program, name in ((generate, "generate.pt2"), (encode, "encode.pt2")):
        values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
        shapes.append([values[given].shape for given in program.graph_signature.user_inputs if isinstance(given, str)])
        if fixed := [shape[0] for shape in shapes[-1] if isinstance(shape[0], int)]:
            raise InputError(
                f"{folder}/{name} takes batches of {fixed[0]} alone; export it with a dynamic batch (docs/selection.md)"
            )
    widths = [shape[1] for shape in shapes[0]]
    if not 1 <= len(widths) <= 2 or not all(isinstance(width, int) for width in widths):
        raise InputError(f"{folder}/generate.pt2 takes {len(widths)} arrays, expected codes [n, K] or codes and noise")
    first, second = (move_to_device_pass(program, device).module() for program in (generate, encode))
    num_codes, num_noise = [*widths, 0][:2]
    return _Archive(first, second, num_codes, num_noise, extra["prior"] or "normal", device)


def _script(path: Path, device: torch.device) -> _Archive:
    try:
        module = torch.jit.load(path, map_location=device).eval()
    except RuntimeError as error:
        raise InputError(f"{path} is no TorchScript archive, or damaged; expected torch.jit.save's output") from error
    for name in ("generate", "encode", "num_codes"):
        if not hasattr(module, name):
            raise InputError(f"{path} has no {name}; expected a scripted module with generate, encode and num_codes")
    noise, prior = getattr(module, "num_noise", 0), getattr(module, "prior", "normal")
    return _Archive(module.generate, module.encode, module.num_codes, noise, prior, device)
