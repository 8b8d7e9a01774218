"""scores.h5: the votes of a pool on disk, from which a selection that was killed, or a larger pool, goes on.

Layout: docs/select.md. Votes are found by the cache keys of their two models, so that a larger pool or another order
finds what it needs, and a changed model finds nothing.
"""

from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import InputError
from ..files import write_atomically
from .centrality import Pool, pool_votes
from .votes import Array, Partial

FORMAT = 2


class Scores(NamedTuple):
    sizes: dict[str, int]
    names: list[str]
    keys: list[str]
    num_codes: list[int]
    exact: dict[tuple[str, str], Array]  # (encoder, generator) -> votes
    race: dict[tuple[str, str], Partial]


def read(path: str | Path) -> tuple[list[str], list[str], list[int], dict[tuple[int, int], Array]]:
    """Read a pool: names, cache keys, numbers of codes, and the votes {(encoder, generator): [m] int16} of its pairs.

    Group m of generator j held its code m mod num_codes[j]; a vote of -1 is none. The votes are the exact ones where
    all pairs have them, else those of a race. Raises InputError where the file is of an older format or damaged.
    """
    found = _open(Path(path))
    return found.names, found.keys, found.num_codes, pool_votes(found.keys, found.exact, found.race)


def restore(path: Path, pool: Pool) -> list[str]:
    """Add what the file knows to the pool; return the models that have changed since, whose cache keys differ.

    Raises InputError where the file is of other sizes or another seed, or cannot be read.
    """
    found = _open(path)
    for name, value in asdict(pool.sizes).items():
        if found.sizes[name] != value:
            raise InputError(f"{path} was made with {name} {found.sizes[name]}, not {value}; choose another --out")
    pool.exact.update(found.exact)
    pool.race.update(found.race)
    known = dict(zip(found.names, found.keys))
    return [model.name for model in pool.models if known.get(model.name, model.cache_key) != model.cache_key]


def save(path: Path, pool: Pool) -> None:
    """Replace the file: a kill at any moment leaves the old or the new one."""
    import h5py

    def write(temporary: Path) -> None:
        with h5py.File(temporary, "w", driver="core", backing_store=False) as file:  # HDF5 does not survive a full disk
            file.attrs.update({"format": FORMAT, **asdict(pool.sizes)})
            file.attrs.update({name: version(name) for name in ("crgan", "torch")})
            for name in ("name", "cache_key", "num_codes"):
                file[f"models/{name}"] = [getattr(model, name) for model in pool.models]
            file["B"] = pool.B
            for generator, column in _columns(pool.exact).items():
                group = file.create_group(f"exact/{generator}")
                group["encoders"], group["votes"] = list(column), np.stack(list(column.values()))
            for generator, column in _columns(pool.race).items():
                votes, variances = zip(*column.values())
                group = file.create_group(f"race/{generator}")
                group["encoders"] = list(column)
                group["groups"], group["votes"] = list(map(len, votes)), np.concatenate(votes)
                group["num_codes"], group["variance"] = list(map(len, variances)), np.concatenate(variances)
            file.flush()
            temporary.write_bytes(file.id.get_file_image())

    write_atomically(path, write)


def _columns(pairs: dict[tuple[str, str], Any]) -> dict[str, dict[str, Any]]:
    """Sort what is known of pairs (encoder, generator) by generator."""
    columns: dict[str, dict[str, Any]] = {}
    for (encoder, generator), value in pairs.items():
        columns.setdefault(generator, {})[encoder] = value
    return columns


def _open(path: Path) -> Scores:
    import h5py

    # A file object takes no HDF5 locks, which fail on network file systems and while somebody else has the file open,
    # and leaves the operating system's errors as they are: neither is damage.
    with path.open("rb") as raw:
        try:
            with h5py.File(raw, "r") as file:
                if (found := int(file.attrs["format"])) != FORMAT:
                    raise ValueError(f"format {found} of another version, expected {FORMAT}")
                sizes = {name: int(file.attrs[name]) for name in ("groups", "group_size", "scale_samples", "seed")}
                names, keys = (file[f"models/{name}"].asstr()[:].tolist() for name in ("name", "cache_key"))
                scores = Scores(sizes, names, keys, file["models/num_codes"][:].tolist(), {}, {})
                for generator, group in file.get("exact", {}).items():
                    for encoder, votes in zip(group["encoders"].asstr()[:], group["votes"][:]):
                        scores.exact[encoder, generator] = votes
                for generator, group in file.get("race", {}).items():
                    parts = [
                        np.split(group[values][:], np.cumsum(group[counts][:])[:-1])
                        for values, counts in (("votes", "groups"), ("variance", "num_codes"))
                    ]
                    for encoder, *partial in zip(group["encoders"].asstr()[:], *parts):
                        scores.race[encoder, generator] = Partial(*partial)
        except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
            raise InputError(f"{path} is not readable as scores ({error}); choose another --out") from None
    return scores
