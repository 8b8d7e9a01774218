"""The HDF5 files of selection: the matrix of a pool, kept across runs, and codes that were made elsewhere."""

import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import torch

from ..errors import InputError
from ..files import write_atomically
from ..fingerprint import hash_files
from .centrality import Array, Pair, Pool, Sizes

FORMAT = 1
SAVE_EVERY = 1.0  # seconds between two saves at least
SAVE_SHARE = 0.05  # of the time at most


class ScoreFile:
    """What is known of a pool, on disk (schema: docs/selection.md).

    Pairs are found by the fingerprints of their two models, so that a larger pool or another order finds what it
    needs, and a changed model finds nothing. The file is replaced whole by a rename: a kill at any moment leaves the
    old or the new one. `tick`, called after each batch, saves what has changed, pairs that are half done too, once a
    second or as often as takes a twentieth of the time.

    Raises InputError where the file is of other sizes or another seed, or cannot be read.
    """

    def __init__(self, path: Path, pool: Pool):
        self.path, self.pool = path, pool
        self.saved: dict[tuple[int, int], tuple[int, int, int]] = {}  # what `_stage` says of each pair in the file
        self.last, self.cost = time.monotonic(), 0.0
        self.replaced: list[str] = []  # models whose fingerprint differs from that in the file
        if path.exists():
            try:
                with h5py.File(path, "r") as file:
                    self._read(file)
            except (OSError, KeyError) as error:
                raise InputError(
                    f"{path} is not readable as scores ({error}); remove it or choose another --out"
                ) from None

    def _read(self, file: h5py.File) -> None:
        for name, value in {"format": FORMAT, **asdict(self.pool.sizes)}.items():
            if (found := int(file.attrs[name])) != value:
                raise InputError(
                    f"{self.path} was made with {name} {found}, not {value}; choose another --out or give the same"
                )
        members = self.pool.members
        known = dict(zip(file["models/name"].asstr()[:], file["models/fingerprint"].asstr()[:]))
        self.replaced = [m.name for m in members if known.get(m.name, m.fingerprint) != m.fingerprint]
        rows = {member.fingerprint: i for i, member in enumerate(members)}
        for generator, column in file["pairs"].items():
            for encoder, data in column.items():
                if encoder in rows and generator in rows:
                    key = rows[encoder], rows[generator]
                    count, least_count = int(data.attrs["count"]), int(data.attrs["least_count"])
                    pair = Pair.restore(count, least_count, data.attrs["mean"], data.attrs["m2"], data[:])
                    self.pool.pairs[key], self.saved[key] = pair, _stage(pair)

    def tick(self) -> None:
        if time.monotonic() - self.last > max(SAVE_EVERY, self.cost / SAVE_SHARE):
            self.save()

    def save(self) -> None:
        begin = time.monotonic()
        write_atomically(self.path, self._write)
        self.last = time.monotonic()
        self.cost = self.last - begin

    def _write(self, path: Path) -> None:
        pool, fresh = self.pool, dict[tuple[int, int], tuple[int, int, int]]()
        source, mode = path, {"mode": "w", "fs_strategy": "fsm", "fs_persist": True}  # deleted space is used again
        if self.path.exists():
            source, mode = self.path, {"mode": "a"}
        # Made in memory: HDF5 does not survive a full disk.
        with h5py.File(source, **mode, driver="core", backing_store=False) as file:
            file.attrs.update({"format": FORMAT, **asdict(pool.sizes)})
            file.attrs.update({name: version(name) for name in ("crgan", "torch")})
            for name in ("models/name", "models/fingerprint", "models/num_codes", "B"):
                if name in file:
                    del file[name]
            for name in ("name", "fingerprint", "num_codes"):
                file[f"models/{name}"] = [getattr(member, name) for member in pool.members]
            file["B"] = pool.B
            pairs = file.require_group("pairs")
            for (i, j), pair in pool.pairs.items():
                if pair.mean is None or self.saved.get((i, j)) == _stage(pair):
                    continue
                name = f"{pool.members[j].fingerprint}/{pool.members[i].fingerprint}"
                if name in pairs:
                    del pairs[name]
                data = pairs.create_dataset(name, data=pair.votes)
                data.attrs.update({"count": pair.count, "least_count": pair.least_count})
                moments = {"mean": pair.mean, "m2": pair.m2}
                data.attrs.update({key: torch.as_tensor(x).cpu().numpy() for key, x in moments.items()})
                fresh[i, j] = _stage(pair)
            file.flush()
            path.write_bytes(file.id.get_file_image())
        self.saved |= fresh


def _stage(pair: Pair) -> tuple[int, int, int]:
    return pair.done, pair.count, pair.least_count


class CodesPool(Pool):
    """A pool whose codes were made elsewhere and lie in an HDF5 file (schema: docs/selection.md).

    Raises InputError where a dataset is missing or has an unexpected shape, naming it.
    """

    def __init__(self, path: Path, seed: int = 0):
        try:
            self.file = h5py.File(path, "r")
        except OSError as error:
            raise InputError(f"{path} cannot be read as HDF5 ({error})") from None
        self.path = path
        try:
            self._open(seed)
        except InputError:
            self.file.close()
            raise

    def _open(self, seed: int) -> None:
        path = self.path
        names = sorted(self.file.get("codes", {}))
        if not names:
            raise InputError(f"{path} holds no group 'codes'; expected codes/<encoder>/<generator> [groups, images, K]")
        shapes = {name: self._array(f"codes/{name}/{name}", (None, None, None)).shape for name in names}
        groups, size, _ = shapes[names[0]]
        self._factors = {}
        for j in names:
            factor = self._array(f"factor/{j}", (groups,))[:]
            if factor.dtype.kind not in "iu" or factor.min() < 0 or factor.max() >= shapes[j][2]:
                raise InputError(f"{path}: factor/{j} must hold integers from 0 to {shapes[j][2] - 1}, {j}'s codes")
            self._factors[j] = factor.astype(np.int64)
            for i in names:
                self._array(f"codes/{i}/{j}", (groups, size, shapes[i][2]))
                if (self._array(f"scale/{i}/{j}", (shapes[i][2],))[:] < 0).any():
                    raise InputError(f"{path}: scale/{i}/{j} holds a value below 0; expected standard deviations")
        whole = hash_files(path)
        members: list[Any] = [
            SimpleNamespace(
                name=name,
                fingerprint=f"{whole[:32]}{n:032x}",
                num_codes=shapes[name][2],
                image_shape=(),
                device=torch.device("cpu"),
            )
            for n, name in enumerate(names)
        ]
        super().__init__(members, Sizes(groups, size, 2, seed))

    def _array(self, name: str, shape: tuple[int | None, ...]) -> h5py.Dataset:
        data = self.file.get(name)
        if not isinstance(data, h5py.Dataset):
            raise InputError(f"{self.path} holds no dataset {name}")
        if len(data.shape) != len(shape) or any(want not in (None, have) for want, have in zip(shape, data.shape)):
            expected = ["any" if want is None else want for want in shape]
            raise InputError(f"{self.path}: {name} has shape {list(data.shape)}, expected {expected}")
        if data.dtype.kind not in "iuf" or 0 in data.shape:
            raise InputError(f"{self.path}: {name} is {data.dtype} {list(data.shape)}, expected numbers, and some")
        return data

    def factor(self, j: int) -> Array:
        return self._factors[self.members[j].name]

    def common_codes(self) -> list[Array]:
        """Each model's codes [n, K] of one sample of images, for UDR."""
        return [self._array(f"sample/{member.name}", (None, member.num_codes))[:] for member in self.members]

    def _encode(self, j: int, pairs: dict[int, Pair], groups: int) -> None:
        for i, pair in pairs.items():
            where = f"{self.members[i].name}/{self.members[j].name}"
            scale = torch.from_numpy(self.file[f"scale/{where}"][:].astype(np.float64))
            pair.count = self.sizes.scale_samples
            pair.mean, pair.m2 = torch.zeros_like(scale), scale.square() * pair.count
            while pair.done < groups:
                codes = self.file[f"codes/{where}"][pair.done : min(pair.done + 100, groups)]
                pair.add_groups(torch.from_numpy(codes.astype(np.float32)))
                self.progress(len(codes) * self.sizes.group_size)
