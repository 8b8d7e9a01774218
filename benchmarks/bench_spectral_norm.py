"""Spectral norm of all layers of the paper's D with Q: PyTorch, PyTorch compiled, the Triton kernels."""

import pytest
import torch
from torch.nn.functional import normalize

from crgan import PRESETS
from crgan.models.networks import Discriminator, normalise
from crgan.ops import spectral_norm

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PROVIDERS = ["reference", "compile"] + (["triton"] if DEVICE == "cuda" else [])


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("work", ["forward", "forward and backward"])
def test_spectral_norm(measure, work, provider):
    """The bytes counted are the least: a pass reads all matrices and writes as many numbers, and the gradients too."""
    g = torch.Generator().manual_seed(0)
    weights = normalise(Discriminator(PRESETS["dsprites"], (1, 64, 64))).weights
    shapes = [weight.flatten(1).shape for weight in weights.values()]
    matrices = [torch.randn(shape, generator=g).to(DEVICE).requires_grad_() for shape in shapes]
    vectors = [normalize(torch.randn(shape[0], generator=g), dim=0).to(DEVICE) for shape in shapes]
    upstream = [torch.randn(shape, generator=g).to(DEVICE) for shape in shapes]

    def call(norm, impl="ref"):
        if work == "forward":
            with torch.no_grad():
                return norm(matrices, vectors, impl=impl)[0]
        return torch.autograd.grad(norm(matrices, vectors, impl=impl)[0], matrices, upstream)

    compiled = torch.compile(spectral_norm, fullgraph=True)
    calls = {
        "reference": lambda i: call(spectral_norm),
        "compile": lambda i: call(compiled),
        "triton": lambda i: call(spectral_norm, "triton"),
    }
    for mine, expected in zip(calls[provider](0), call(spectral_norm), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-4)
    moved = 2 if work == "forward" else 5
    measure(calls[provider], f"spectral_norm {work}", provider, DEVICE, moved * sum(m.nbytes for m in matrices))
