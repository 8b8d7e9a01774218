"""The votes of 200 pairs: reading the codes once, the reference, the extension, and a numpy loop."""

import numpy as np
import pytest
import torch

from crgan import group_votes
from crgan.ops import group_votes_ref

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PAIRS, GROUPS, SIZE, CODES = 200, 500, 100, 5
LOOPED = PAIRS // 10  # the numpy loop has a tenth of the pairs; measure compares rates


def numpy_loop(codes: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Group by group, in the order of the definition."""
    votes = np.empty(codes.shape[:2], np.int64)
    for pair in range(len(codes)):
        for group in range(GROUPS):
            votes[pair, group] = np.argmin(np.var(codes[pair, group] / scale[pair], axis=0))
    return votes


@pytest.fixture(scope="module")
def drawn():
    """Codes [200, 500, 100, 5] float32 of spreads of their own, their scale, and the right votes."""
    draw = torch.Generator().manual_seed(0)
    codes = torch.randn(PAIRS, GROUPS, SIZE, CODES, generator=draw)
    codes *= torch.rand(PAIRS, GROUPS, 1, CODES, generator=draw).add(0.5)
    scale = torch.ones(PAIRS, CODES)
    truth = torch.cat([group_votes_ref(part.double(), torch.ones(CODES)) for part in codes.split(20)])
    return codes.to(DEVICE), scale.to(DEVICE), truth


@pytest.mark.parametrize("provider", ["read once", "reference", "numpy loop", "ext"])
def test_group_votes(measure, drawn, provider):
    """The codes count as read once. `read once` is torch.sum, the least that any implementation has to do."""
    codes, scale, truth = drawn
    if provider == "numpy loop":
        codes, scale, truth = (part[:LOOPED].cpu() for part in drawn)
    vote = {
        "read once": lambda i: codes.sum(),
        "reference": lambda i: group_votes(codes, scale, impl="ref"),
        "numpy loop": lambda i: torch.from_numpy(numpy_loop(codes.numpy(), scale.numpy())),
        "ext": lambda i: group_votes(codes, scale, impl="ext"),
    }[provider]
    if provider != "read once":
        wrong = vote(0).cpu() != truth  # in float32 two spreads may be as good as equal
        assert wrong.float().mean() <= 1e-4
    device = "cpu" if provider == "numpy loop" else DEVICE
    measure(vote, "group_votes [200, 500, 100, 5] float32", provider, device, codes.nbytes)
