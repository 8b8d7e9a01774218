"""scores.h5: the votes of a pool on disk, from which a killed selection, or a larger pool, continues.

The layout is in docs/select.md. Votes are keyed by the cache keys of two models: a changed model finds none.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from ..errors import InputError
from ..files import write_atomically
from ..metrics.arrays import Array
from .centrality import PairVotes, Pool, vote_tables

FORMAT = 3
PAD = -2  # fills up the rows of encoders that have fewer votes, or codes, than others
Tables = dict[tuple[int, int], Array]  # {(encoder, generator): counts [K_encoder + 1, K_generator]}, see vote_tables


class Scores(NamedTuple):
    """What scores.h5 holds. Group m of generator j held its code m mod num_codes[j]."""

    sizes: dict[str, int]  # groups, group_size, scale_samples, seed
    names: list[str]
    keys: list[str]  # cache keys
    num_codes: list[int]
    known: dict[tuple[str, str], PairVotes]  # by the cache keys of encoder and generator


def read(path: str | Path) -> Scores:
    """Read scores.h5. Raises InputError where the file is of an older format, or damaged."""
    # With a file object HDF5 takes no locks, which fail on network file systems and while another process has the file
    # open, and the operating system's errors come from open(), outside the try: neither means damage.
    with Path(path).open("rb") as raw:
        try:
            with h5py.File(raw, "r") as file:
                if (found := int(file.attrs["format"])) != FORMAT:
                    raise ValueError(f"format {found} of another version, expected {FORMAT}")
                sizes = {name: int(file.attrs[name]) for name in ("groups", "group_size", "scale_samples", "seed")}
                names, keys = (file[f"models/{name}"].asstr()[:].tolist() for name in ("name", "cache_key"))
                known = {}
                for generator, group in file.get("pairs", {}).items():
                    rows = (group[name][:] for name in ("votes", "variance", "exact"))
                    for encoder, votes, variance, exact in zip(group["encoders"].asstr()[:], *rows):
                        pair = PairVotes(votes[votes != PAD], variance[variance != PAD], bool(exact))
                        known[encoder, generator] = pair
                return Scores(sizes, names, keys, file["models/num_codes"][:].tolist(), known)
        except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
            raise InputError(f"{path} is not readable as scores ({error}); choose another --out") from None


def read_tables(path: Path, keys: Sequence[str | None]) -> Tables:
    """Read the vote tables of the pairs of a pool; models are numbered by their cache keys in `keys`."""
    found = read(path)
    num_codes = dict(zip(found.keys, found.num_codes))
    index = {key: i for i, key in enumerate(keys) if key in num_codes}
    return {
        (index[i], index[j]): vote_tables(pair.votes[None], num_codes[i], num_codes[j])[0]
        for (i, j), pair in found.known.items()
        if i in index and j in index
    }


def short_names(names: Sequence[str]) -> list[str]:
    """Return the names without the folders and settings that all of them share."""
    parts = [re.split("[/,]", name) for name in names]
    shared = set.intersection(*map(set, parts))
    own = [[part for part in pieces if part not in shared] for pieces in parts]
    return [",".join(pieces) or name for pieces, name in zip(own, names)]


def restore(path: Path, pool: Pool) -> list[str]:
    """Add what the file knows to the pool; return the names of models whose cache keys have changed since.

    Raises InputError where the file is of other sizes or another seed, or cannot be read.
    """
    found = read(path)
    for name, value in asdict(pool.sizes).items():
        if found.sizes[name] != value:
            raise InputError(f"{path} was made with {name} {found.sizes[name]}, not {value}; choose another --out")
    pool.known |= found.known
    before = dict(zip(found.names, found.keys))
    return [model.name for model in pool.models if before.get(model.name, model.cache_key) != model.cache_key]


def save(path: Path, pool: Pool) -> None:
    """Replace the file: a kill at any moment leaves the old or the new one."""
    columns: dict[str, dict[str, PairVotes]] = {}  # by generator, then encoder
    for (encoder, generator), found in pool.known.items():
        columns.setdefault(generator, {})[encoder] = found

    def write(temporary: Path) -> None:
        with h5py.File(temporary, "w", driver="core", backing_store=False) as file:  # HDF5 does not survive a full disk
            file.attrs.update({"format": FORMAT, **asdict(pool.sizes)})
            file.attrs.update({name: version(name) for name in ("crgan", "torch")})
            for name in ("name", "cache_key", "num_codes"):
                file[f"models/{name}"] = [getattr(model, name) for model in pool.models]
            file["B"] = pool.B
            for generator, column in columns.items():
                group = file.create_group(f"pairs/{generator}")
                votes, variance, exact = zip(*column.values())
                group["encoders"], group["exact"] = list(column), exact
                for name, rows in (("votes", votes), ("variance", variance)):
                    longest = max(map(len, rows))
                    padded = [np.pad(row, (0, longest - len(row)), constant_values=PAD) for row in rows]
                    group[name] = np.stack(padded)
            file.flush()
            temporary.write_bytes(file.id.get_file_image())

    write_atomically(path, write)
