"""scores.h5: the votes of a pool on disk, from which a selection that was killed, or a larger pool, goes on."""

import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..files import write_atomically
from .centrality import Pool, pool_votes
from .votes import Array, Partial

FORMAT = 2
RACE_INTERVAL = 1.0  # seconds between two saves of a race at least, whose single steps are short


def read(path: str | Path) -> tuple[list[str], list[str], list[int], dict[tuple[int, int], Array]]:
    """Read a pool: names, cache keys, numbers of codes, and the votes {(encoder, generator): [m] int16} of its pairs.

    Group m of generator j held its code m mod num_codes[j]; a vote of -1 is none. The votes are the exact ones where
    all pairs have them, else those of a race. Raises InputError where the file is of an older format or damaged.
    """
    content = _Content(Path(path))
    votes = pool_votes(content.keys, content.exact, content.race)
    return content.names, content.keys, content.num_codes, votes


class ScoreFile:
    """What is known of a pool, on disk (layout: docs/select.md).

    Votes are found by the cache keys of their two models, so that a larger pool or another order finds what it needs,
    and a changed model finds nothing. The file is replaced whole after each generator: a kill at any moment leaves the
    old or the new one. Raises InputError where the file is of other sizes or another seed, or cannot be read.
    """

    def __init__(self, path: Path, pool: Pool):
        self.path, self.pool, self.last = path, pool, time.monotonic()
        self.changed: list[str] = []  # models whose cache key differs from that in the file
        if path.exists():
            content = _Content(path)
            for name, value in asdict(pool.sizes).items():
                if content.sizes[name] != value:
                    raise InputError(
                        f"{path} was made with {name} {content.sizes[name]}, not {value}; choose another --out or give "
                        "the same"
                    )
            pool.exact.update(content.exact)
            pool.race.update(content.race)
            known = dict(zip(content.names, content.keys))
            self.changed = [m.name for m in pool.models if known.get(m.name, m.cache_key) != m.cache_key]

    def save(self) -> None:
        write_atomically(self.path, self._write)
        self.last = time.monotonic()

    def save_race(self) -> None:
        if time.monotonic() - self.last > RACE_INTERVAL:
            self.save()

    def _write(self, path: Path) -> None:
        import h5py

        pool = self.pool
        with h5py.File(path, "w", driver="core", backing_store=False) as file:  # HDF5 does not survive a full disk
            file.attrs.update({"format": FORMAT, **asdict(pool.sizes)})
            file.attrs.update({name: version(name) for name in ("crgan", "torch")})
            for name in ("name", "cache_key", "num_codes"):
                file[f"models/{name}"] = [getattr(model, name) for model in pool.models]
            file["B"] = pool.B
            for generator, column in _columns(pool.exact).items():
                group = file.create_group(f"exact/{generator}")
                group["encoders"], group["votes"] = list(column), np.stack(list(column.values()))
            for generator, partials in _columns(pool.race).items():
                group = file.create_group(f"race/{generator}")
                group["encoders"] = list(partials)
                group["groups"] = [len(partial.votes) for partial in partials.values()]
                group["votes"] = np.concatenate([partial.votes for partial in partials.values()])
                group["num_codes"] = [len(partial.variance) for partial in partials.values()]
                group["variance"] = np.concatenate([partial.variance for partial in partials.values()])
            file.flush()
            path.write_bytes(file.id.get_file_image())


def _columns(pairs: dict[tuple[str, str], Any]) -> dict[str, dict[str, Any]]:
    """Sort what is known of pairs (encoder, generator) by generator."""
    columns: dict[str, dict[str, Any]] = {}
    for (encoder, generator), value in pairs.items():
        columns.setdefault(generator, {})[encoder] = value
    return columns


class _Content:
    """A whole scores.h5 in memory."""

    def __init__(self, path: Path):
        import h5py

        # A file object takes no HDF5 locks, which fail on network file systems and while somebody else has the file
        # open, and leaves the operating system's errors as they are: neither is damage.
        with path.open("rb") as raw:
            try:
                with h5py.File(raw, "r") as file:
                    self._read(file, path)
            except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
                if isinstance(error, InputError):
                    raise
                raise InputError(
                    f"{path} is not readable as scores ({error}); remove it or choose another --out"
                ) from None

    def _read(self, file: Any, path: Path) -> None:
        if (found := int(file.attrs["format"])) != FORMAT:
            raise InputError(f"{path} has format {found} of another version, expected {FORMAT}; choose another --out")
        self.sizes = {name: int(file.attrs[name]) for name in ("groups", "group_size", "scale_samples", "seed")}
        self.names, self.keys = (file[f"models/{name}"].asstr()[:].tolist() for name in ("name", "cache_key"))
        self.num_codes = file["models/num_codes"][:].tolist()
        self.exact: dict[tuple[str, str], Array] = {}
        self.race: dict[tuple[str, str], Partial] = {}
        for generator, group in file.get("exact", {}).items():
            for encoder, votes in zip(group["encoders"].asstr()[:], group["votes"][:]):
                self.exact[encoder, generator] = votes
        for generator, group in file.get("race", {}).items():
            votes = np.split(group["votes"][:], np.cumsum(group["groups"][:])[:-1])
            variances = np.split(group["variance"][:], np.cumsum(group["num_codes"][:])[:-1])
            for encoder, *partial in zip(group["encoders"].asstr()[:], votes, variances):
                self.race[encoder, generator] = Partial(*partial)
