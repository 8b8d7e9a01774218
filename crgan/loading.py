"""Open models of any kind, and check what they return against the contract of docs/models.md."""

import hashlib
import importlib
import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .checkpoint import latest, load, read_config
from .device import evaluating, exact_arithmetic
from .errors import InputError


class LoadedModel:
    """A model with a name; `sample`, `generate` and `encode` check each call and return float32.

    Its scores are cached under `cache_key`: the one given (a hash of the model's files), else the model's attribute
    `fingerprint`, else a SHA-256 of 64 images that the model generates and its codes for them.
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
                codes = self._call("encode", (2, None), images.to(self.device, self.dtype))
                shape, num_codes = shape or images.shape[1:], num_codes or codes.shape[1]
        self.image_shape, self.num_codes = tuple(shape), int(num_codes)

    @cached_property
    def cache_key(self) -> str:
        key = self._given_key or getattr(self.model, "fingerprint", None)
        if isinstance(key, str):
            if not re.fullmatch(r"[\w-]+", key):  # it names a group in scores.h5
                raise InputError(f"{self.name} has the fingerprint {key!r}; expected only letters, digits, _ and -")
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

    def check_data(self, dataset: Any) -> None:
        """Raise InputError where this model cannot encode the images of `dataset`."""
        if tuple(dataset.image_shape) != self.image_shape:
            sizes = f"images {list(self.image_shape)}, those of {dataset.name} are {list(dataset.image_shape)}"
            raise InputError(f"{self.name} takes {sizes}; expected the data that it was trained on, or of that shape")

    def _call(self, verb: str, shape: tuple[int | None, ...], *arguments: Any, **more: Any) -> Tensor:
        try:
            given = getattr(self.model, verb)(*arguments, **more)
        except (RuntimeError, AssertionError) as error:  # an exported graph asserts the sizes that it was exported for
            raise InputError(f"{self.name}.{verb} failed ({error}); its weights are {self.dtype}") from error
        fits = isinstance(given, Tensor) and given.is_floating_point()
        if fits and len(shape) == given.dim() and all(a in (None, b) for a, b in zip(shape, given.shape)):
            return given.float()
        what = f"tensor {list(given.shape)} of {given.dtype}" if isinstance(given, Tensor) else type(given).__name__
        expected = ["any" if size is None else size for size in shape]
        raise InputError(f"{self.name}.{verb} gave a {what}, expected a torch.Tensor {expected} of floats")


def eval_mode(models: Iterable[LoadedModel]) -> AbstractContextManager[None]:
    """Context manager: eval mode for models that are torch modules or hold some as attributes; restored afterwards."""
    held = (part for m in models for part in (m.model, *getattr(m.model, "__dict__", {}).values()))
    return evaluating(*(part for part in held if isinstance(part, nn.Module)))


def open_models(models: Any, device: str | torch.device = "cpu") -> list[LoadedModel]:
    """Open the models of a pool: RUN arguments, which name them, or models, in a sequence or a mapping from names.

    A RUN is the folder of a training run, or a folder of such folders; a folder with `generate.pt2` and `encode.pt2`
    (torch.export.save); or `module:function`, which returns a model, a sequence or a mapping of models. The last two
    run as code: open only what you trust. Leaves out, with a warning, runs without a checkpoint. Raises InputError for
    what is none of these, cannot be read or breaks the contract, and for a model or a name given twice.
    """
    given = _named([models] if isinstance(models, str | Path) else models, "models")
    opened: list[LoadedModel] = []
    for name, model in given.items():
        is_run = isinstance(model, str | Path)
        opened += models_of(str(model), torch.device(device)) if is_run else [LoadedModel(name, model)]
    if given and not opened:
        raise InputError(f"{', '.join(map(str, given.values()))} hold no model; expected runs that have trained")
    for one, other in combinations(opened, 2):
        if one.cache_key == other.cache_key:
            raise InputError(f"{one.name} and {other.name} behave the same; leave one out, or give each a fingerprint")
        if one.name == other.name:
            raise InputError(f"two models are called {one.name}; give them names of their own")
    return opened


def _named(models: Sequence[Any] | Mapping[Any, Any], what: str) -> dict[str, Any]:
    pairs = models.items() if isinstance(models, Mapping) else ((f"{what}[{i}]", m) for i, m in enumerate(models))
    return {str(name): model for name, model in pairs}


def models_of(run: str, device: torch.device) -> Iterator[LoadedModel]:
    """Open the models of one RUN argument; warn about a run without a checkpoint, and leave it out."""
    run = run.rstrip("/")
    path = Path(run).expanduser()
    programs = path / "generate.pt2", path / "encode.pt2"
    if any(file.is_file() for file in programs):
        yield LoadedModel(run, _Exported(*programs, device), _hash(*programs))
    elif path.is_dir():
        inside = [] if (path / "config.json").exists() else sorted(path.glob("*/config.json"))  # a sweep's runs
        for name, folder in [(str(config.parent), config.parent) for config in inside] or [(run, path)]:
            read_config(folder)  # raises InputError if it is no run
            if checkpoint := latest(folder):  # runs that ended with the same weights are the same model
                key = _hash(checkpoint / "model.safetensors")  # before training replaces it
                yield LoadedModel(name, load(folder, device), key)
            else:
                warnings.warn(f"{name} has no checkpoint, perhaps because its run failed; it is left out", stacklevel=2)
    elif ":" in run:
        module, _, function = run.partition(":")
        if "" not in sys.path:
            sys.path.insert(0, "")  # `python -m` has it, an installed command may not
        try:
            found = getattr(importlib.import_module(module), function)()
        except Exception as error:  # the user's code may raise anything
            raise InputError(f"{run} gives no models ({type(error).__name__}: {error})") from error
        for name, model in (_named(found, run) if isinstance(found, Sequence | Mapping) else {run: found}).items():
            yield LoadedModel(name, model.to(device) if isinstance(model, nn.Module) else model)
    else:
        raise InputError(f"{run} is no model; expected a folder of a run or of an export, or module:function")


def _hash(*files: Path) -> str:
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


class _Exported:
    """A model made of exported programs, generate and encode, with draws from its prior."""

    def __init__(self, generate: Path, encode: Path, device: torch.device):
        from torch.export.passes import move_to_device_pass

        if not (generate.is_file() and encode.is_file()):
            raise InputError(f"{generate.parent} has no {encode.name if generate.is_file() else generate.name}")
        extra = {"prior": ""}
        try:
            programs = torch.export.load(generate, extra_files=extra), torch.export.load(encode)
            self.sizes = [example.shape[1] for example in programs[0].example_inputs[0]]  # of codes, then noise
            self._generate, self.encode = (move_to_device_pass(program, device).module() for program in programs)
        except Exception as error:  # torch raises a different one for each way in which a file can be broken
            raise InputError(f"{generate.parent} cannot be opened with torch.export.load ({error})") from None
        self.prior, self.device = extra["prior"] or "normal", device
        self.num_codes, self.num_noise = self.sizes[0], sum(self.sizes[1:])

    def generate(self, codes: Tensor, seed: int = 0, noise: Tensor | None = None) -> Tensor:
        noise = self._draw(len(codes), self.num_noise, seed) if noise is None else noise
        return self._generate(codes, noise) if self.num_noise else self._generate(codes)

    def sample(self, n: int, seed: int) -> Tensor:
        return self._generate(*self._draw(n, sum(self.sizes), seed).split(self.sizes, 1))

    def _draw(self, n: int, size: int, seed: int) -> Tensor:
        return draw_codes(self.prior, (n, size), seed).to(self.device)


def draw_codes(prior: str, shape: tuple[int, int], seed: int) -> Tensor:
    """Draw float32 codes on the CPU: "uniform" on [-1, 1], or "normal"."""
    generator = torch.Generator().manual_seed(seed)
    if prior == "normal":
        return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
    return 2 * torch.rand(shape, generator=generator, dtype=torch.float32, device="cpu") - 1
