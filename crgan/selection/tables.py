"""Vote tables of pairs of models and short names, for the report."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

Tables = dict[tuple[int, int], np.ndarray]
"""{(encoder, generator): counts [K_encoder + 1, K_generator]}. The last row counts the groups without a vote."""

MAX_MODELS = 60  # that a matrix shows
MAX_NUMBERS = 400_000  # of all vote tables in it, about 1 MB of text


def read_tables(path: Path, keys: Sequence[str | None]) -> Tables:
    """Read the votes of the pairs of a pool from scores.h5; models are numbered by their cache keys in `keys`."""
    from .scores import read

    _, found, num_codes, votes = read(path)
    rank = {i: keys.index(key) for i, key in enumerate(found) if key in keys}
    tables = {}
    for (i, j), vote in votes.items():
        if i in rank and j in rank and len(vote):
            table = np.zeros((num_codes[i] + 1, num_codes[j]), np.int64)
            np.add.at(table, (vote.astype(np.int64), np.arange(len(vote)) % num_codes[j]), 1)  # -1: the last row
            tables[rank[i], rank[j]] = table
    return tables


def matrix(tables: Tables, names: Sequence[str]) -> dict[str, Any]:
    """Return scores, similarity and vote tables of the pairs among the first models, as far as there is room."""
    N, room = min(len(names), MAX_MODELS), MAX_NUMBERS
    B, votes = np.full((N, N), np.nan), {}
    for (i, j), table in sorted(tables.items(), key=lambda item: max(item[0])):
        if i < N and j < N:
            B[i, j] = table.max(1).sum() / table.sum()
            room -= table.size
            if room > 0:
                votes[f"{i},{j}"] = table.tolist()
    data = {"names": names[:N], "scores": _lists(B), "votes": votes}
    return {"names": names[:N], "similarity": _lists((B + B.T) / 2), "data": data}


def short_names(names: Sequence[str]) -> list[str]:
    """Return the names without the folders and settings that all of them have."""
    parts = [re.split("[/,]", name) for name in names]
    shared = set.intersection(*map(set, parts))
    return [",".join(part for part in of if part not in shared) or name for of, name in zip(parts, names)]


def _lists(A: np.ndarray) -> list[list[float | None]]:
    return [[None if np.isnan(x) else round(x, 4) for x in row] for row in A.tolist()]
