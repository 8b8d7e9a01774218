"""Vote tables of pairs of models and short names, for the report."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .centrality import vote_tables
from .scores import read

Tables = dict[tuple[int, int], np.ndarray]
"""{(encoder, generator): counts [K_encoder + 1, K_generator]}. The last row counts the groups without a vote."""


def read_tables(path: Path, keys: Sequence[str | None]) -> Tables:
    """Read the votes of the pairs of a pool from scores.h5; models are numbered by their cache keys in `keys`."""
    _, found, num_codes, votes = read(path)
    rank = {i: keys.index(key) for i, key in enumerate(found) if key in keys}
    return {
        (rank[i], rank[j]): vote_tables(vote[None], num_codes[i], num_codes[j])[0]
        for (i, j), vote in votes.items()
        if i in rank and j in rank and len(vote)
    }


def short_names(names: Sequence[str]) -> list[str]:
    """Return the names without the folders and settings that all of them have."""
    parts = [re.split("[/,]", name) for name in names]
    shared = set.intersection(*map(set, parts))
    return [",".join(part for part in of if part not in shared) or name for of, name in zip(parts, names)]
