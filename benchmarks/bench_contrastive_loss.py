"""The contrastive loss, H's last layer with its cross-entropy: PyTorch, PyTorch compiled, the Triton kernel."""

import pytest
import torch
from conftest import CALLS

from crgan.ops import contrastive_loss

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PROVIDERS = ["reference", "compile"] + (["triton"] if DEVICE == "cuda" else [])


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("work", ["forward", "forward and backward"])
@pytest.mark.parametrize("batch", [64, 65536])
def test_contrastive_loss(measure, batch, work, provider):
    """Width 128, 5 codes. The bytes counted are the least: features read by each pass, their gradient written."""
    g = torch.Generator().manual_seed(0)
    draws = [torch.randn(batch, 128, generator=g).to(DEVICE).requires_grad_() for _ in range(CALLS[DEVICE])]
    weight = torch.randn(5, 128, generator=g).to(DEVICE).requires_grad_()
    bias = torch.zeros(5, device=DEVICE, requires_grad=True)
    index = torch.randint(5, (batch,), generator=g).to(DEVICE)

    def call(i, impl="ref"):
        features = draws[i]
        if work == "forward":
            with torch.no_grad():
                return (contrastive_loss(features, weight, bias, index, impl=impl),)
        loss = contrastive_loss(features, weight, bias, index, impl=impl)
        return loss.detach(), *torch.autograd.grad(loss, (features, weight, bias))

    torch._dynamo.reset()  # else the second size would make the sizes dynamic
    loss = torch.compile(contrastive_loss, fullgraph=True)

    def compiled(i):
        features = draws[i]
        if work == "forward":
            with torch.no_grad():
                return (loss(features, weight, bias, index, impl="ref"),)
        value = loss(features, weight, bias, index, impl="ref")
        return value.detach(), *torch.autograd.grad(value, (features, weight, bias))

    timed = {"reference": call, "compile": compiled, "triton": lambda i: call(i, "triton")}[provider]
    for mine, expected in zip(timed(0), call(0), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-6)
    passes = 1 if work == "forward" else 3
    measure(timed, f"contrastive_loss {work} {batch}", provider, DEVICE, passes * draws[0].nbytes)
