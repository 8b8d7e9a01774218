"""What tells one model from another: by it selection knows which scores it has."""

import hashlib
import re
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from sysconfig import get_paths
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .config import Config
from .errors import InputError


def hash_files(*paths: Path) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


_OF_EVERY_MODULE = {"training", *vars(nn.Module())}
_PLAIN = bool | int | float | complex | str | bytes | np.generic | type(None) | type(...)


_INSTALLED = [Path(place) for name, place in get_paths().items() if name.endswith("lib")]


def _of_library(value: Any) -> bool:
    """Whether a function or class is installed rather than the user's own."""
    package = (value.__module__ or "builtins").partition(".")[0]
    file = getattr(sys.modules.get(package), "__file__", None)
    away = file is None or any(Path(file).is_relative_to(place) for place in _INSTALLED)
    return package != "__main__" and (package == "crgan" or away)


def _written(named: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What somebody has written under the names of a class or a module; lists and mappings may be caches."""
    for name, value in named.items():
        # a property's function; that of a static method or a cache
        inner = getattr(value, "fget", None) or getattr(value, "__wrapped__", value)
        held = value if isinstance(value, FunctionType) else inner
        written = isinstance(held, _PLAIN | tuple | frozenset) and not name.startswith("__")
        if written or isinstance(held, FunctionType | type | Tensor | np.ndarray):
            yield name, held


def fingerprint_of(model: Any) -> str:
    """SHA-256 over the weights, plain settings and code of a model; its own `fingerprint` (a string), if it has one.

    Reads the state of modules, tensors, arrays, numbers, texts and containers of these, in attributes, slots, closures
    and partials at any depth; of functions and classes that are not installed their instructions, and what these name
    in their module: functions, classes, tensors, numbers, texts and tuples. Not how a run of this library was trained:
    runs that ended with the same weights are the same model.
    """
    given = getattr(model, "fingerprint", None)
    if isinstance(given, str):
        if not re.fullmatch(r"[\w-]+", given):  # it names a group in scores.h5
            raise InputError(f"a model has the fingerprint {given!r}; expected letters, digits, _ and - alone")
        return given
    digest = hashlib.sha256()
    seen: dict[int, Any] = {}  # keeps what it has seen alive: the place of a dead object is used again

    def feed(name: str, value: Any) -> None:
        if id(value) in seen or isinstance(value, Config | ModuleType):
            return
        digest.update(f"{name} {type(value).__qualname__} ".encode())
        if isinstance(value, Tensor | np.ndarray):
            x = torch.as_tensor(value).detach().cpu().contiguous()
            digest.update(f"{x.dtype} {list(x.shape)} ".encode() + x.reshape(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(value, _PLAIN):
            digest.update(repr(value).encode())
        elif isinstance(value, CodeType):
            for item in (value.co_code, *value.co_names, *value.co_consts):
                feed("", item)
        else:
            seen[id(value)] = value
            if isinstance(value, nn.Module):
                state = dict(value.state_dict())
                feed("state", state)
                rest: dict[str, Any] = {k: v for k, v in value.named_buffers() if k not in state}
                for place, part in value.named_modules():
                    own = {k: v for k, v in vars(part).items() if k not in _OF_EVERY_MODULE}
                    rest[place] = [type(part), own]
                items: Any = rest.items()
            elif isinstance(value, Mapping):
                items = value.items()
            elif isinstance(value, list | tuple):
                items = enumerate(value)
            elif isinstance(value, set | frozenset):
                items = enumerate(sorted(value, key=repr))
            elif isinstance(value, partial):
                items = zip(("func", "args", "keywords"), (value.func, value.args, value.keywords))
            elif isinstance(value, MethodType):
                items = enumerate((value.__self__, value.__func__))
            elif isinstance(value, type):
                digest.update(value.__qualname__.encode())
                items = [] if _of_library(value) else [*enumerate(value.__bases__), *_written(vars(value))]
            else:
                feed("", type(value))
                slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
                held = [(name, getattr(value, name)) for name in slots if hasattr(value, name)]
                cells = getattr(value, "__closure__", None) or ()
                held += [("", cell.cell_contents) for cell in cells if cell != CellType()]  # an empty one holds nothing
                items = [*held, *getattr(value, "__dict__", {}).items()]
                digest.update(getattr(value, "__qualname__", "").encode())
                if isinstance(value, FunctionType) and not _of_library(value):
                    feed("", value.__code__)
                    named = {name: value.__globals__.get(name) for name in value.__code__.co_names}
                    items += [*enumerate(value.__defaults__ or ()), *_written(named)]
            for key, item in items:
                feed(str(key), item)

    feed("", model)
    return digest.hexdigest()
