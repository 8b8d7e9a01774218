"""Open models of any kind, and check what they give: the contract of docs/models.md."""

import hashlib
import importlib
import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .device import exact_arithmetic
from .errors import InputError


class LoadedModel:
    """A model under a name, with `sample`, `generate` and `encode` checked at each call.

    Images and codes come back in float32, whatever type the model works in. `cache_key` tells which scores of a model
    were computed before: it is the one given (a hash of the model's files), else the model's own attribute
    `fingerprint`, else a SHA-256 of 64 images that the model makes and of the codes that it gives to them.
    """

    def __init__(self, name: str, model: Any, cache_key: str | None = None):
        missing = [verb for verb in ("sample", "generate", "encode") if not callable(getattr(model, verb, None))]
        if missing:
            raise InputError(f"{name} has no {missing[0]}(); expected a model with sample, generate and encode")
        self.name, self.model, self._given_key = name, model, cache_key
        held = [*model.parameters(), *model.buffers()] if isinstance(model, nn.Module) else []
        self.device = torch.device(getattr(model, "device", held[0].device if held else "cpu"))
        self.dtype = next((tensor.dtype for tensor in held if tensor.is_floating_point()), torch.float32)
        self.num_noise = int(getattr(model, "num_noise", 0))
        self.prior = getattr(model, "prior", "normal")
        if self.prior not in ("uniform", "normal"):
            raise InputError(f"{name} has the prior {self.prior!r}, expected 'uniform' (in [-1, 1]) or 'normal'")
        shape, num_codes = getattr(model, "image_shape", None), getattr(model, "num_codes", None)
        if shape is None or num_codes is None:
            with eval_mode([self]), torch.inference_mode():
                images = self._call("sample", (2, None, None, None), 2, 0)
                shape = shape or images.shape[1:]
                num_codes = num_codes or self._call("encode", (2, None), images.to(self.dtype)).shape[-1]
        self.image_shape, self.num_codes = tuple(shape), int(num_codes)

    @cached_property
    def cache_key(self) -> str:
        key = self._given_key or getattr(self.model, "fingerprint", None)
        if isinstance(key, str):
            if not re.fullmatch(r"[\w-]+", key):  # it names a group in scores.h5
                raise InputError(f"{self.name} has the fingerprint {key!r}; expected letters, digits, _ and - alone")
            return key
        with exact_arithmetic(), eval_mode([self]), torch.inference_mode():
            images = self.sample(64, 0)
            parts = images, self.encode(images)
        return hashlib.sha256(b"".join(part.cpu().contiguous().numpy().tobytes() for part in parts)).hexdigest()

    def sample(self, n: int, seed: int) -> Tensor:
        """Return images [n, C, H, W] drawn from the model's prior; `seed` has at most 32 bits."""
        return self._call("sample", (n, *self.image_shape), n, seed)

    def generate(self, codes: Tensor, seed: int) -> Tensor:
        """Return the images [n, C, H, W] of codes [n, K]; `seed` draws the model's noise, where it takes any."""
        noise = {"seed": seed} if self.num_noise else {}
        return self._call("generate", (len(codes), *self.image_shape), codes.to(self.device, self.dtype), **noise)

    def encode(self, images: Tensor) -> Tensor:
        """Return the codes [n, K] of images [n, C, H, W]."""
        return self._call("encode", (len(images), self.num_codes), images.to(self.device, self.dtype))

    def check_range(self, images: Tensor) -> None:
        """Warn of images that the other models' encoders were not made for."""
        low, high = (value.item() for value in images.aminmax())
        if low < -0.01 or high > 1.01:
            warnings.warn(f"{self.name} makes images from {low:.3g} to {high:.3g}; expected 0 to 1", stacklevel=2)

    def check_data(self, dataset: Any) -> None:
        """Raise InputError where this model cannot encode the images of `dataset`."""
        if tuple(dataset.image_shape) != self.image_shape:
            raise InputError(
                f"{self.name} takes images {list(self.image_shape)}, those of {dataset.name} are "
                f"{list(dataset.image_shape)}; expected the data that it was trained on, or data of that shape"
            )

    def _call(self, verb: str, shape: tuple[int | None, ...], *arguments: Any, **more: Any) -> Tensor:
        try:
            given = getattr(self.model, verb)(*arguments, **more)
        except RuntimeError as error:
            way = "" if self.dtype == torch.float32 else f"; its weights are {self.dtype}, give it in float32"
            raise InputError(f"{self.name}.{verb} failed ({error}){way}") from error
        expected = ["any" if size is None else size for size in shape]
        if not isinstance(given, Tensor):
            raise InputError(f"{self.name}.{verb} gave a {type(given).__name__}, expected a torch.Tensor {expected}")
        if not given.is_floating_point():
            raise InputError(f"{self.name}.{verb} gave a tensor of {given.dtype}, expected floats")
        if given.dim() != len(shape) or any(want not in (None, have) for want, have in zip(shape, given.shape)):
            raise InputError(f"{self.name}.{verb} gave a tensor {list(given.shape)}, expected {expected}")
        return given.float()


@contextmanager
def eval_mode(models: Iterable[LoadedModel]) -> Iterator[None]:
    """Put models that are torch modules, or hold some as attributes, into eval mode, and restore their modes after."""
    held = [part for m in models for part in (m.model, *getattr(m.model, "__dict__", {}).values())]
    modes = {part: part.training for whole in held if isinstance(whole, nn.Module) for part in whole.modules()}
    try:
        for part in modes:
            part.training = False
        yield
    finally:
        for part, training in modes.items():
            part.training = training


def open_models(models: Any, device: str | torch.device = "cpu") -> list[LoadedModel]:
    """Open the models of a pool: RUN arguments, named after them, or models, in a sequence or a mapping of names.

    A RUN is the folder of a training run, or a folder of such folders; a folder with `generate.pt2` and `encode.pt2`
    (torch.export.save); or `module:function`, which returns a model, a sequence or a mapping of models. Archives and
    modules run as code: open only those that you trust.

    Leaves out, with a warning, runs without a checkpoint. Raises InputError for what is none of these, cannot be read
    or breaks the contract, and for a model or a name given twice.
    """
    if isinstance(models, str | Path):
        models = [models]
    named = models if isinstance(models, Mapping) else {f"models[{i}]": model for i, model in enumerate(models)}
    opened: list[LoadedModel] = []
    for name, model in named.items():
        is_run = isinstance(model, str | Path)
        opened += models_of(str(model), torch.device(device)) if is_run else [LoadedModel(str(name), model)]
    if named and not opened:
        raise InputError(f"{', '.join(map(str, named.values()))} hold no model; expected runs that have trained")
    seen: dict[str, LoadedModel] = {}
    names: dict[str, LoadedModel] = {}
    for opening in opened:
        twin = seen.setdefault(opening.cache_key, opening)
        if twin is not opening:
            raise InputError(f"{twin.name} and {opening.name} are the same model; name each model of a pool once")
        if names.setdefault(opening.name, opening) is not opening:
            raise InputError(f"two models are called {opening.name}; give them names of their own")
    return opened


def models_of(run: str, device: torch.device) -> Iterator[LoadedModel]:
    """Open those of one RUN argument; none, with a warning, of a run without a checkpoint."""
    run = run.rstrip("/")
    path = Path(run).expanduser()
    archives = path / "generate.pt2", path / "encode.pt2"
    if any(file.is_file() for file in archives):
        yield LoadedModel(run, _exported(path, device), hash_files(*archives))
    elif path.is_dir():
        inside = sorted(found.parent for found in path.glob("*/config.json"))
        if (path / "config.json").exists() or not inside:
            yield from _trained(run, path, device)
        for folder in inside:  # a sweep's runs
            yield from _trained(str(folder), folder, device)
    elif path.suffix == ".pt2":
        raise InputError(f"{run} is one half of an exported model; give its folder, {path.parent}")
    elif ":" in run:
        for name, model in _imported(run):
            yield LoadedModel(name, model.to(device) if isinstance(model, nn.Module) else model)
    else:
        raise InputError(
            f"{f'{run} is no model' if path.exists() else f'there is no {run}'}; expected a run folder, a folder with "
            "generate.pt2 and encode.pt2, or module:function"
        )


def hash_files(*paths: Path) -> str:
    """Return the SHA-256 of the content of some files."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def run_key(folder: Path) -> str | None:
    """Return the cache key of a run folder, a hash of its newest weights, or None where there are none.

    How they were trained does not matter: runs that ended with the same weights are the same model.
    """
    from .checkpoint import latest

    checkpoint = latest(folder)
    return hash_files(checkpoint / "model.safetensors") if checkpoint else None


def _trained(run: str, path: Path, device: torch.device) -> Iterator[LoadedModel]:
    from .checkpoint import latest, load, read_config

    read_config(path)  # else it is no run
    if latest(path) is None:
        warnings.warn(f"{run} has no checkpoint, as a run that failed; it is left out", stacklevel=2)
    else:
        yield LoadedModel(run, load(path).to(device), run_key(path))


def _imported(run: str) -> Iterator[tuple[str, Any]]:
    module, _, function = run.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")  # `python -m` has it, an installed command may not
    try:
        models = getattr(importlib.import_module(module), function)()
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


class _Exported:
    """generate and encode of saved graphs, with draws from the prior."""

    def __init__(self, generate: Any, encode: Any, num_codes: int, num_noise: int, prior: str, device: torch.device):
        self._generate, self.encode, self.device = generate, encode, device
        self.num_codes, self.num_noise, self.prior = num_codes, num_noise, prior

    def generate(self, codes: Tensor, seed: int = 0) -> Tensor:
        noise = [self._draw(len(codes), self.num_noise, seed)] if self.num_noise else []
        return self._generate(codes, *noise)

    def sample(self, n: int, seed: int) -> Tensor:
        drawn = self._draw(n, self.num_codes + self.num_noise, seed)
        return self._generate(*drawn.split([self.num_codes, self.num_noise], 1)[: 1 + (self.num_noise > 0)])

    def _draw(self, n: int, size: int, seed: int) -> Tensor:
        return draw_codes(self.prior, (n, size), seed).to(self.device)


def draw_codes(prior: str, shape: tuple[int, int], seed: int) -> Tensor:
    """Draw float32 codes on the CPU: "uniform" on [-1, 1], or "normal"."""
    draw = torch.Generator().manual_seed(seed)
    if prior == "normal":
        return torch.randn(shape, generator=draw, dtype=torch.float32, device="cpu")
    return torch.rand(shape, generator=draw, dtype=torch.float32, device="cpu") * 2 - 1


def _exported(folder: Path, device: torch.device) -> _Exported:
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
                f"{folder}/{name} takes batches of {fixed[0]} alone; export it with a dynamic batch (docs/models.md)"
            )
    widths = [shape[1] for shape in shapes[0]]
    if not 1 <= len(widths) <= 2 or not all(isinstance(width, int) for width in widths):
        raise InputError(f"{folder}/generate.pt2 takes {len(widths)} arrays, expected codes [n, K] or codes and noise")
    first, second = (move_to_device_pass(program, device).module() for program in (generate, encode))
    num_codes, num_noise = [*widths, 0][:2]
    return _Exported(first, second, num_codes, num_noise, extra["prior"] or "normal", device)
