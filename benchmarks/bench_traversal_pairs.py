"""Paired latent traversals: the reference, the reference compiled, the Triton kernel."""

import pytest
import torch

from crgan.ops import traversal_pairs

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PROVIDERS = ["reference", "compile"] + (["triton"] if DEVICE == "cuda" else [])


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("batch", [64, 65536])
def test_traversal_pairs(measure, batch, provider):
    """5 codes, 5 noise values; the step is in memory, as a captured training step has it."""
    if provider == "compile" and batch == 64 and DEVICE == "cuda" and torch.__version__.startswith("2.11"):
        pytest.skip("torch.compile in torch 2.11 has a constant that exceeds its type where a batch has few words")
    step = torch.tensor(2**40 + 3, device=DEVICE)

    def draw(step, impl="ref"):
        return traversal_pairs(batch, 5, 5, 0.1, 7, step, device=DEVICE, impl=impl)

    calls = {
        "reference": draw,
        "compile": torch.compile(draw, fullgraph=True),
        "triton": lambda step: draw(step, "triton"),
    }
    drawn = calls[provider](step)
    assert all(torch.equal(a, b) for a, b in zip(drawn, draw(step), strict=True))
    measure(lambda i: calls[provider](step), f"traversal_pairs {batch}", provider, DEVICE, sum(t.nbytes for t in drawn))
