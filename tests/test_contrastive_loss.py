"""The contrastive loss: H's last layer, its cross-entropy and their gradients."""

import math
from itertools import product

import pytest
import torch
from op_checks import assert_as_exact

from crgan.errors import InputError
from crgan.ops import contrastive_loss


def sample_inputs():
    """batch, width, num_codes, type of the features, type of the parameters"""
    sizes = [(64, 128, 5), (1, 1, 2), (33, 17, 3), (130, 40, 7), (65, 130, 17), (70, 20, 256), (200, 16, 2), (0, 8, 4)]
    types = [(torch.float32, torch.float32), (torch.bfloat16, torch.float32), (torch.float16, torch.float16)]
    return list(product(sizes, types))


def make(size, types, device="cpu", seed=0):
    batch, width, num_codes = size
    g = torch.Generator().manual_seed(seed)
    features = torch.randn(batch, width, generator=g)
    weight = torch.randn(num_codes, width, generator=g) / width**0.5
    bias = torch.randn(num_codes, generator=g)
    index = torch.randint(num_codes, (batch,), generator=g)
    floats = [t.to(dtype=d, device=device) for t, d in zip((features, weight, bias), (types[0], types[1], types[1]))]
    return [t.requires_grad_() for t in floats], index.to(device)


def run(floats, index, impl, upstream=-2.5):
    """Loss and the gradients of upstream * loss."""
    loss = contrastive_loss(*floats, index, impl=impl)
    return [loss.detach(), *torch.autograd.grad(loss * upstream, floats)]


@pytest.mark.parametrize(("size", "types"), sample_inputs(), ids=str)
def test_kernel_is_as_exact_as_the_reference(size, types, device):
    """Values and gradients against float64, with an upstream gradient other than 1."""
    floats, index = make(size, types, device)
    truth = run([t.detach().double().requires_grad_() for t in floats], index, "ref")
    reference, mine = run(floats, index, "ref"), run(floats, index, "triton")
    for name, *values in zip(["loss", "d features", "d weight", "d bias"], mine, reference, truth, strict=True):
        assert_as_exact(*values, name)


def test_equal_input_gives_equal_bits(device):
    """Several programs share these rows, and their sums are added up."""
    floats, index = make((200, 70, 5), (torch.float32, torch.float32), device)
    assert all(map(torch.equal, run(floats, index, "triton"), run(floats, index, "triton")))


@pytest.mark.parametrize("impl", ["ref", "triton"])
def test_known_answers(impl):
    """Equal logits give log K and gradients of (1/K - [k == index]) / B; certain ones give 0 or their distance."""
    weight, bias = torch.zeros(4, 3, requires_grad=True), torch.zeros(4, requires_grad=True)
    loss = contrastive_loss(torch.ones(8, 3), weight, bias, torch.full((8,), 2), impl=impl)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(4), rel=1e-6)
    torch.testing.assert_close(bias.grad, torch.tensor([0.25, 0.25, -0.75, 0.25]))
    torch.testing.assert_close(weight.grad, bias.grad[:, None].expand(4, 3))

    index = torch.tensor([0, 1, 1])  # the logits say 0, 1, 2 with a lead of 100
    loss = contrastive_loss(torch.eye(3), 100 * torch.eye(3), torch.zeros(3), index, impl=impl)
    assert loss.item() == pytest.approx(100 / 3, rel=1e-6)


@pytest.mark.parametrize("impl", ["ref", "triton"])
def test_strided_arguments(impl):
    """Transposed and sliced tensors give the values of their contiguous copies."""
    (features, weight, bias), index = make((60, 24, 6), (torch.float32, torch.float32))
    strided = [
        features.detach().T.contiguous().T.requires_grad_(),
        weight.detach().repeat_interleave(2, dim=1)[:, ::2].detach().requires_grad_(),
        bias.detach().repeat(2)[:6].requires_grad_(),
    ]
    assert not strided[0].is_contiguous()
    assert not strided[1].is_contiguous()
    mine = run(strided, torch.stack((index, index), 1)[:, 0], impl)
    torch.testing.assert_close(mine, run((features, weight, bias), index, impl), rtol=1e-5, atol=1e-7)


def test_registration():
    """torch.library's own checks of schema, fake tensors, autograd and dispatch, on both ops."""
    for size, types in [((9, 8, 3), (torch.float32,) * 2), ((3, 5, 2), (torch.bfloat16, torch.float32))]:
        floats, index = make(size, types)
        torch.library.opcheck(torch.ops.crgan.contrastive_loss.default, (*floats, index))
        detached = [t.detach() for t in floats]
        torch.library.opcheck(torch.ops.crgan.contrastive_loss_backward.default, (torch.tensor(1.5), *detached, index))


@pytest.mark.parametrize("impl", ["ref", "triton"])
def test_compiles_without_a_graph_break(impl):
    """Forward and backward trace as one graph and give what eager gives."""
    floats, index = make((20, 12, 4), (torch.float32, torch.float32))
    compiled = torch.compile(lambda *args: contrastive_loss(*args, impl=impl), backend="aot_eager", fullgraph=True)
    loss = compiled(*floats, index)
    mine = [loss.detach(), *torch.autograd.grad(loss * -2.5, floats)]
    torch.testing.assert_close(mine, run(floats, index, impl))


@pytest.mark.parametrize("impl", ["ref", "triton"])
def test_autocast_leaves_it_in_float32(impl):
    """Under autocast the features come as bfloat16, the parameters stay float32, and so does the arithmetic."""
    floats, index = make((64, 32, 5), (torch.bfloat16, torch.float32))
    with torch.autocast("cpu", torch.bfloat16):
        loss = contrastive_loss(*floats, index, impl=impl)
    assert loss.dtype == torch.float32
    mine = [loss.detach(), *torch.autograd.grad(loss, floats)]
    assert all(map(torch.equal, mine, run(floats, index, impl, upstream=1.0)))


def test_second_derivative_raises():
    """The kernel is differentiable once and says so; the reference is differentiable twice."""
    floats, index = make((6, 4, 3), (torch.float32, torch.float32))
    losses = [contrastive_loss(*floats, index, impl=impl) for impl in ("ref", "triton")]
    ref, kernel = (torch.autograd.grad(loss, floats[:1], create_graph=True)[0].square().sum() for loss in losses)
    assert torch.autograd.grad(ref, floats[1])[0].abs().sum() > 0
    with pytest.raises(RuntimeError, match="contrastive_loss_backward"):
        kernel.backward()


def test_an_index_that_is_no_code_is_not_passed_over():
    """The reference raises; the kernel, which cannot without a stall, gives NaN."""
    floats, index = make((6, 4, 3), (torch.float32, torch.float32))
    for wrong in (3, -100):
        index[4] = wrong
        with pytest.raises(RuntimeError, match="index"):
            contrastive_loss(*floats, index, impl="ref")
        assert contrastive_loss(*floats, index, impl="triton").isnan()


def test_mistakes_are_named():
    (features, weight, bias), index = make((6, 4, 3), (torch.float32, torch.float32))
    for arguments, message in [
        ((features, weight, bias, index[:5]), r"\[3\], \[5\]\]; expected"),
        ((features[0], weight, bias, index), r"shapes \[\[4\], "),
        ((features, weight[:, :3], bias, index), r"\[6, 4\], \[3, 3\]"),
        ((features, weight[:1], bias[:1], index), "2 <= K <= 256"),
        ((features, weight, bias, index.int()), "index is torch.int32, expected int64"),
    ]:
        with pytest.raises(InputError, match=message):
            contrastive_loss(*arguments)
    with pytest.raises(InputError, match="reads float32, float16 and bfloat16"):
        contrastive_loss(features.double(), weight, bias, index, impl="triton")
