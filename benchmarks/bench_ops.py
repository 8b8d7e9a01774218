"""The training ops: the reference in PyTorch, the reference compiled, the Triton kernel.

The bytes counted are the least that a pass moves: arguments read and results written by each, and the gradients.
"""

from functools import partial

import pytest
import torch
from conftest import CALLS
from torch.nn.functional import normalize

from crgan import PRESETS, ops
from crgan.models.networks import Discriminator, normalise

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.parametrize("provider", ["reference", "compile"] + (["triton"] if DEVICE == "cuda" else []))
DIRECTIONS = pytest.mark.parametrize("work", ["forward", "forward and backward"])


def randn(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(DEVICE).requires_grad_()


@pytest.fixture
def measure_op(measure, provider):
    """Times `call(i, op)` with the op of one provider, after a check of its results against the reference's."""

    def run(op, call, group, num_bytes, **tolerances):
        torch._dynamo.reset()  # else the second size would make the sizes dynamic
        reference, kernel = partial(op, impl="ref"), partial(op, impl="triton")
        compiled = torch.compile(reference, fullgraph=True)
        timed = {"reference": reference, "compile": compiled, "triton": kernel}[provider]
        torch.testing.assert_close(call(0, timed), call(0, reference), **tolerances)
        measure(lambda i: call(i, timed), group, provider, DEVICE, num_bytes)

    return run


@pytest.mark.parametrize("batch", [64, 65536])
def test_traversal_pairs(measure_op, batch, provider):
    """5 codes, 5 noise values; the step is in memory, as a captured training step has it."""
    if provider == "compile" and batch == 64 and DEVICE == "cuda" and torch.__version__.startswith("2.11"):
        pytest.skip("torch.compile in torch 2.11 has a constant that exceeds its type where a batch has few words")
    step = torch.tensor(2**40 + 3, device=DEVICE)

    def draw(i, op):
        return op(batch, 5, 5, 0.1, 7, step, device=DEVICE)

    num_bytes = sum(t.nbytes for t in draw(0, ops.traversal_pairs))
    measure_op(ops.traversal_pairs, draw, f"traversal_pairs {batch}", num_bytes, rtol=0, atol=0)


@DIRECTIONS
@pytest.mark.parametrize("batch", [64, 65536])
def test_contrastive_loss(measure_op, batch, work):
    """H's last layer with its cross-entropy: width 128, 5 codes."""
    draws, weight, bias = [randn(batch, 128) for _ in range(CALLS[DEVICE])], randn(5, 128), randn(5)
    index = torch.arange(batch, device=DEVICE) % 5

    def call(i, op):
        with torch.set_grad_enabled(work != "forward"):
            loss = op(draws[i], weight, bias, index)
        return loss if work == "forward" else torch.autograd.grad(loss, (draws[i], weight, bias))

    moved = draws[0].nbytes * (1 if work == "forward" else 3)
    measure_op(ops.contrastive_loss, call, f"contrastive_loss {work} {batch}", moved, rtol=1e-4, atol=1e-6)


@DIRECTIONS
def test_spectral_norm(measure_op, work):
    """All layers of the paper's D with Q."""
    weights = normalise(Discriminator(PRESETS["dsprites"], (1, 64, 64))).weights.values()
    matrices = [randn(*weight.flatten(1).shape) for weight in weights]
    vectors = [normalize(matrix.detach()[:, 0], dim=0) for matrix in matrices]
    upstream = [matrix.detach() + 1 for matrix in matrices]

    def call(i, op):
        with torch.set_grad_enabled(work != "forward"):
            results, _ = op(matrices, vectors)
        return results if work == "forward" else torch.autograd.grad(results, matrices, upstream)

    moved = sum(matrix.nbytes for matrix in matrices) * (2 if work == "forward" else 5)
    measure_op(ops.spectral_norm, call, f"spectral_norm {work}", moved, rtol=1e-4, atol=1e-4)
