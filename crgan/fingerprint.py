"""What tells one model from another: by it selection knows which scores it has."""

import hashlib
import inspect
import re
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property, partial
from logging import Logger
from pathlib import Path, PurePath
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


_PLAIN = bool | int | float | complex | str | bytes | bytearray | range | slice | np.generic | type(None) | type(...)
_PLAIN |= re.Pattern | PurePath | torch.dtype | torch.device | torch._ops.OpOverload | torch._ops.OpOverloadPacket
_OF_EVERY_MODULE = {"training", "_compiled_call_impl", *vars(nn.Module())}
_INSTALLED = [Path(place) for name, place in get_paths().items() if name.endswith("lib")] + [Path(__file__).parent]


def fingerprint_of(model: Any) -> str:
    """SHA-256 over the weights, settings and code of a model; its own `fingerprint` (a string), if it has one.

    Reads the state of modules, tensors, arrays, numbers, texts and containers of these, in attributes, slots, closures
    and partials at any depth; the text of classes that are not installed and the instructions of functions, but not
    what these name in their module. Not how a run of this library was trained: runs that ended with the same weights
    are the same model. Raises InputError for what cannot be read.
    """
    given = getattr(model, "fingerprint", None)
    if isinstance(given, str):
        if not re.fullmatch(r"[\w-]+", given):  # it names a group in scores.h5
            raise InputError(f"a model has the fingerprint {given!r}; expected letters, digits, _ and - alone")
        return given
    digest = hashlib.sha256()
    seen: dict[int, tuple[int, Any]] = {}  # keeps what it has seen alive: the place of a dead object is used again

    def feed(value: Any) -> None:
        value = getattr(value, "_torchdynamo_orig_callable", value) if isinstance(value, FunctionType) else value
        if isinstance(value, _PLAIN):
            digest.update(f"{type(value).__name__} {value!r},".encode())
        elif id(value) in seen:
            digest.update(f"again {seen[id(value)][0]},".encode())
        elif not isinstance(value, Config | ModuleType):
            seen[id(value)] = len(seen), value
            digest.update(f"{type(value).__qualname__} (".encode())
            if isinstance(value, Tensor):
                x = value.detach()
                x = (x if x.layout == torch.strided else x.to_dense()).cpu().resolve_conj().resolve_neg().contiguous()
                digest.update(f"{x.dtype} {list(x.shape)} ".encode())
                digest.update(x.reshape(-1).view(torch.uint8).numpy().tobytes())
            elif isinstance(value, np.ndarray) and value.dtype != object:
                digest.update(f"{value.dtype.str} {value.shape} ".encode() + np.ascontiguousarray(value).tobytes())
            else:
                for item in _parts(value):
                    feed(item)
            digest.update(b"),")

    try:
        feed(model)
    except Exception as error:  # a user's objects may raise anything, and recursion has its limit
        raise InputError(
            f"a {type(model).__name__} cannot be told from others ({type(error).__name__}: {error}); "
            "give it an attribute 'fingerprint', a text that changes with the model"
        ) from error
    return digest.hexdigest()


def _parts(value: Any) -> list[Any]:
    """What an object is made of, the same in every process and whether or not it has been used."""
    if isinstance(value, nn.Module):
        value = getattr(value, "_orig_mod", value)  # of a compiled one
        state = dict(value.state_dict())
        rest = {name: buffer for name, buffer in value.named_buffers() if name not in state}  # those that it may lack
        parts = [(place, part) for place, part in value.named_modules(remove_duplicate=False)]
        kinds = [(place, type(part), _own(part)) for place, part in parts if "_orig_mod" not in part._modules]
        return [state, rest, *kinds]
    if isinstance(value, type):
        text = None
        with suppress(OSError, TypeError):
            file = Path(inspect.getsourcefile(value) or "")
            text = None if any(file.is_relative_to(place) for place in _INSTALLED) else inspect.getsource(value)
        return [value.__qualname__, text, *(value.__bases__ if text else ())]
    if isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or () if cell != CellType()]  # some hold nothing
        return [value.__qualname__, value.__code__, value.__defaults__, value.__kwdefaults__, cells, vars(value)]
    if isinstance(value, CodeType):
        return [value.co_code, value.co_names, value.co_consts]
    if isinstance(value, MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, torch.autocast):  # the rest is what it found when it was entered
        return [value.device, value.fast_dtype, value._enabled]
    if isinstance(value, Logger):
        return [value.name]
    if isinstance(value, Mapping):
        return [part for item in value.items() for part in item]
    if isinstance(value, list | tuple | deque):
        return list(value)
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, set | frozenset):
        return sorted(value, key=repr)
    return [type(value), getattr(value, "__qualname__", None), _own(value)]


def _own(value: Any) -> dict[str, Any]:
    """The attributes of an object, in its slots too, but for those of every module and those filled in at first use."""
    if isinstance(value, torch.fx.GraphModule):
        return {"code": value.code}
    held, late = {}, {"__dict__", "__weakref__"}
    for kind in type(value).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(value, name):
                held[name] = getattr(value, name)
        late |= {name for name, member in vars(kind).items() if isinstance(member, cached_property)}
    held |= getattr(value, "__dict__", {})
    skipped = late | (_OF_EVERY_MODULE if isinstance(value, nn.Module) else set())
    return {name: item for name, item in held.items() if name not in skipped}
