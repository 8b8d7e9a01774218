"""What every op promises, and the values and gradients of the contrastive loss and of spectral norm."""

import math
from itertools import product

import pytest
import torch
from _crgan_kernels import _triton
from _crgan_kernels import spectral_norm as norm_kernels
from _crgan_kernels.group_votes import _load as load_extension
from op_checks import assert_as_exact
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils import _pytree as pytree

from crgan import InputError, ops
from crgan.ops import contrastive_loss, group_votes, random_index, spectral_norm, traversal_pairs, vote_table


@pytest.fixture(params=["ref", "triton"])
def impl(request):
    return request.param


def loss_inputs(batch=6, width=4, num_codes=3, features=torch.float32, parameters=torch.float32):
    """Arguments of `contrastive_loss`; `features` and `parameters` are types."""
    return {
        "features": torch.randn(batch, width).to(features).requires_grad_(),
        "weight": (torch.randn(num_codes, width) / width**0.5).to(parameters).requires_grad_(),
        "bias": torch.randn(num_codes).to(parameters).requires_grad_(),
        "index": torch.randint(num_codes, (batch,)),
    }


def norm_inputs(*shapes):
    """Arguments of `spectral_norm`: a layer of each shape."""
    return {
        "matrices": [torch.randn(shape).requires_grad_() for shape in shapes],
        "vectors": [normalize(torch.randn(shape[0]), dim=0) for shape in shapes],
    }


def sample_inputs(op):
    """Small arguments of any op, by name."""
    counter = {"seed": 5, "step": torch.tensor(2**40), "device": "cpu"}
    votes = {"codes": torch.randn(6, 9, 5), "scale": torch.rand(5) + 0.5}
    return {
        traversal_pairs: {"batch": 8, "num_codes": 3, "num_noise": 2, "gap": 0.3, **counter},
        random_index: {"n": 8, "high": 3, **counter},
        contrastive_loss: loss_inputs(),
        spectral_norm: norm_inputs((4, 6), (5, 3)),
        group_votes: votes,
        vote_table: {**votes, "factor": torch.arange(6), "num_factors": 6},
    }[op]


def changed(inputs, change):
    """The arguments with `change` applied to each tensor, which asks for gradients where it did."""
    return pytree.tree_map_only(Tensor, lambda t: change(t.detach()).requires_grad_(t.requires_grad), inputs)


def results(op, inputs, impl):
    """All results of an op, and the gradients of the sum of random multiples of them."""
    draw, found = torch.Generator().manual_seed(1), pytree.tree_leaves(op(**inputs, impl=impl))
    smooth = [t for t in found if t.requires_grad]
    upstream = [torch.randn(t.shape, generator=draw).to(t) for t in smooth]
    parameters = [t for t in pytree.tree_leaves(inputs) if isinstance(t, Tensor) and t.requires_grad]
    return [t.detach() for t in found] + list(torch.autograd.grad(smooth, parameters, upstream) if smooth else [])


def check_exactness(op, inputs, device, **tolerances):
    """Values and gradients of the kernel, and of the reference, against the reference in float64."""
    inputs = changed(inputs, lambda t: t.to(device))
    exact = changed(inputs, lambda t: t.double() if t.is_floating_point() else t)
    found = results(op, inputs, "triton"), results(op, inputs, "ref"), results(op, exact, "ref")
    for n, values in enumerate(zip(*found, strict=True)):
        assert_as_exact(*values, f"{op.__name__}, result {n}", **tolerances)


SIZES = [(64, 128, 5), (1, 1, 2), (33, 17, 3), (130, 40, 7), (65, 130, 17), (70, 20, 256), (200, 16, 2), (0, 8, 4)]
TYPES = [(torch.float32, torch.float32), (torch.bfloat16, torch.float32), (torch.float16, torch.float16)]
DSPRITES = [(32, 16), (32, 512), (64, 512), (64, 1024), (128, 1024), (1, 128), (128, 128), (5, 128)]
LAYERS = [[(1, 1)], [(3, 5)], [(1, 300), (300, 1)], [(65, 130), (7, 1), (33, 257)], [(1030, 6)], DSPRITES]


@pytest.mark.parametrize(("size", "types"), [*product(SIZES, TYPES)], ids=str)
def test_the_loss_is_as_exact_as_its_reference(size, types, device):
    check_exactness(contrastive_loss, loss_inputs(*size, *types), device)


@pytest.mark.parametrize("shapes", LAYERS, ids=str)
def test_spectral_norm_is_as_exact_as_its_reference(shapes, device):
    check_exactness(spectral_norm, norm_inputs(*shapes), device, rounding=16, atol=1e-6)


KERNELS = [(contrastive_loss, "triton"), (spectral_norm, "triton"), (vote_table, "ext"), (vote_table, "auto")]
REFERENCES = [(op, "ref") for op in (traversal_pairs, contrastive_loss, spectral_norm, vote_table)]


@pytest.mark.parametrize(("op", "impl"), [*REFERENCES, *KERNELS])
def test_compiles_without_a_graph_break(op, impl):
    """Forward and backward trace as one graph and give what the reference gives; of the sampler, its bits."""
    inputs, compiled = sample_inputs(op), torch.compile(op, backend="aot_eager", fullgraph=True)
    tolerances = {"rtol": 0, "atol": 0} if op is traversal_pairs else {}
    torch.testing.assert_close(results(compiled, inputs, impl), results(op, inputs, "ref"), **tolerances)


@pytest.mark.parametrize("op", [contrastive_loss, spectral_norm])
def test_strides_do_not_matter(op, impl):
    inputs = sample_inputs(op)
    expected = results(op, inputs, "ref")
    for layout in (lambda t: torch.stack([t, t], -1)[..., 0], lambda t: t.mT.contiguous().mT if t.dim() > 1 else t):
        torch.testing.assert_close(results(op, changed(inputs, layout), impl), expected, rtol=1e-5, atol=1e-6)


def test_the_checks_of_torch_library():
    """Schema, fake tensors, autograd and dispatch; those of the votes are in test_group_votes."""
    for features in (torch.float32, torch.bfloat16):
        inputs = loss_inputs(9, 8, features=features).values()
        torch.library.opcheck(torch.ops.crgan.contrastive_loss.default, (*inputs,))
        gradient = torch.tensor(1.5), *(t.detach() for t in inputs)
        torch.library.opcheck(torch.ops.crgan.contrastive_loss_backward.default, gradient)
    torch.library.opcheck(torch.ops.crgan.spectral_norm.default, (*sample_inputs(spectral_norm).values(),))


@pytest.mark.parametrize("op", [contrastive_loss, spectral_norm])
def test_kernels_are_differentiable_once(op, impl):
    inputs = sample_inputs(op)
    parameter, *_ = pytree.tree_leaves(inputs)
    result, *_ = pytree.tree_leaves(op(**inputs, impl=impl))
    (gradient,) = torch.autograd.grad(result.square().sum(), parameter, create_graph=True)
    if impl == "ref":
        assert torch.autograd.grad(gradient.square().sum(), parameter)[0].abs().sum() > 0
    else:
        with pytest.raises(RuntimeError):
            gradient.square().sum().backward()


def test_equal_input_gives_equal_bits(device):
    """Several programs share these rows, and their sums are added up."""
    inputs = changed(loss_inputs(200, 70, 5), lambda t: t.to(device))
    assert all(map(torch.equal, *(results(contrastive_loss, inputs, "triton") for _ in range(2))))


def test_known_answers_of_the_loss(impl):
    """Certain logits cost nothing or their lead, whose exponential no float holds; equal ones cost log K."""
    features, index = torch.eye(4, 3), torch.tensor([0, 1, 1, 2])  # the logits of the last row are all 0
    loss = contrastive_loss(features, 100 * torch.eye(3), torch.zeros(3), index, impl=impl)
    assert loss.item() == pytest.approx((100 + math.log(3)) / 4, rel=1e-6)


def test_autocast_leaves_the_loss_in_float32(impl):
    """Under autocast the features come as bfloat16, the parameters stay float32, and so does the arithmetic."""
    inputs = loss_inputs(64, 32, 5, features=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        loss = contrastive_loss(**inputs, impl=impl)
    assert loss.dtype == torch.float32
    floats, expected = list(inputs.values())[:3], contrastive_loss(**inputs, impl=impl)
    assert torch.equal(loss, expected)
    assert all(map(torch.equal, *(torch.autograd.grad(value, floats) for value in (loss, expected))))


def test_an_index_that_is_no_code_is_not_passed_over():
    """The reference raises; the kernel, which cannot without a stall, gives NaN."""
    inputs = loss_inputs()
    for wrong in (3, -100):
        inputs["index"][4] = wrong
        with pytest.raises(RuntimeError, match="index"):
            contrastive_loss(**inputs, impl="ref")
        assert contrastive_loss(**inputs, impl="triton").isnan()


def test_iterations_of_spectral_norm_find_the_largest_singular_value(impl):
    matrices, vectors = norm_inputs((16, 48), (5, 7)).values()
    for _ in range(200):
        normalised, vectors = spectral_norm(matrices, vectors, impl=impl)
    for result, matrix in zip(normalised, matrices):
        truth = matrix / torch.linalg.matrix_norm(matrix, 2)
        torch.testing.assert_close(result, truth, rtol=1e-4, atol=1e-5)


def test_gradients_of_spectral_norm_flow_through_the_iteration_also_of_a_part_of_the_results():
    inputs = sample_inputs(spectral_norm)
    wide = changed(inputs, Tensor.double)
    assert torch.autograd.gradcheck(lambda *given: spectral_norm(given, wide["vectors"])[0], wide["matrices"])
    (first, _), moved = spectral_norm(**inputs, impl="triton")
    assert not any(u.requires_grad for u in moved)
    (expected, _), _ = spectral_norm(**inputs, impl="ref")
    gradients = [torch.autograd.grad(result[0, 0], inputs["matrices"][0])[0] for result in (first, expected)]
    torch.testing.assert_close(*gradients)


def test_a_zero_matrix_stays_one(impl):
    (result,), (u,) = spectral_norm([torch.zeros(4, 6)], [torch.full((4,), 0.5)], impl=impl)
    assert not result.any()
    assert not u.any()
    assert spectral_norm([], [], impl=impl) == ([], [])


def test_copies_leave_no_table_behind():
    inputs = sample_inputs(spectral_norm)
    spectral_norm(**inputs, impl="triton")
    before = norm_kernels._make_table.cache_info().currsize
    for _ in range(3):
        spectral_norm(**changed(inputs, lambda t: torch.stack([t, t], -1)[..., 0]), impl="triton")
    assert norm_kernels._make_table.cache_info().currsize == before


def test_mistakes_are_named():
    for op, change, named in (
        (traversal_pairs, {"gap": 2.0}, "gap is 2.0, expected 0 <= gap < 2"),
        (traversal_pairs, {"gap": -0.1}, "gap is -0.1"),
        (traversal_pairs, {"gap": math.nan}, "gap is nan"),
        (traversal_pairs, {"num_codes": 0}, "num_codes is 0"),
        (traversal_pairs, {"seed": -1}, "seed is -1"),
        (traversal_pairs, {"seed": 2**64}, "expected 0 <= seed < 2"),
        (traversal_pairs, {"step": torch.tensor(1.0)}, "step is torch.float32"),
        (traversal_pairs, {"step": torch.tensor([1])}, r"step is torch.int64 of shape \[1\]"),
        (traversal_pairs, {"impl": "cuda"}, "has no such implementation"),
        (random_index, {"high": 0}, "high is 0"),
        (contrastive_loss, {"index": torch.zeros(5, dtype=torch.int64)}, r"\[3\], \[5\]\]; expected"),
        (contrastive_loss, {"features": torch.zeros(4)}, r"shapes \[\[4\], "),
        (contrastive_loss, {"weight": torch.zeros(3, 3)}, r"\[6, 4\], \[3, 3\]"),
        (contrastive_loss, {"weight": torch.zeros(1, 4), "bias": torch.zeros(1)}, "2 <= K <= 256"),
        (contrastive_loss, {"index": torch.zeros(6, dtype=torch.int32)}, "index is torch.int32, expected int64"),
        (contrastive_loss, {"bias": torch.zeros(3).double(), "impl": "triton"}, "reads float32, float16 and bfloat16"),
        (spectral_norm, {"vectors": [torch.zeros(4)]}, r"matrices \[\[4, 6\], \[5, 3\]\], vectors \[\[4\]\]"),
        (spectral_norm, {"vectors": [torch.zeros(4).half(), torch.zeros(5)]}, "expected all float32, or all float64"),
        (vote_table, {"codes": torch.zeros(9, 5)}, r"\[9, 5\]"),
        (vote_table, {"scale": torch.ones(3, 5)}, r"\[3, 5\], expected \[5\]"),
        (vote_table, {"factor": torch.zeros(5, dtype=torch.int64)}, r"\[5\].*expected int64 of shape \[6\]"),
        (vote_table, {"factor": torch.zeros(6)}, "torch.float32"),
        (vote_table, {"codes": torch.zeros(6, 9, 5, dtype=torch.int64)}, "torch.int64"),
        (vote_table, {"num_factors": 5}, "factor holds 5"),
        (vote_table, {"factor": torch.tensor([0, 1, -1, 2, 3, 4])}, "factor holds -1"),
        (vote_table, {"scale": torch.ones(5, device="meta")}, "meta"),
    ):
        with pytest.raises(InputError, match=named):
            op(**sample_inputs(op) | change)


def test_a_kernel_asked_for_by_name_runs_or_raises(monkeypatch):
    """Never the reference instead."""
    codes, scale = sample_inputs(group_votes).values()
    with pytest.raises(InputError, match=r"impl='ext'.*float64"):
        group_votes(codes.double(), scale, impl="ext")
    with pytest.raises(InputError, match=r"impl='triton'.*auto, ext, ref"):
        group_votes(codes, scale, impl="triton")
    with pytest.raises(InputError, match="the kernel reads float32; what can run here: auto, ref"):
        spectral_norm(**changed(sample_inputs(spectral_norm), Tensor.double), impl="triton")
    monkeypatch.setattr(_triton, "INTERPRET", False)
    with pytest.raises(InputError, match="Triton runs on cuda, not on cpu"):
        random_index(2, 2, 1, 1, device="cpu", impl="triton")
    assert len(random_index(2, 2, 1, 1, device="cpu")) == 2


def test_auto_says_once_that_it_takes_the_reference(monkeypatch):
    codes, scale = sample_inputs(group_votes).values()
    monkeypatch.setattr(ops, "_said", set())
    monkeypatch.setitem(ops.EXTENSION_MISSING, "cpu", load_extension("no_such_module"))  # once, at import
    with pytest.raises(InputError, match=r"no_such_module.*pip install"):
        group_votes(codes, scale, impl="ext")
    with pytest.warns(UserWarning, match=r"pip install.*reference") as caught:
        votes = [group_votes(codes, scale), group_votes(codes, scale), group_votes(codes.double(), scale)]
    assert len(caught) == 1
    assert all(torch.equal(v, group_votes(codes, scale, impl="ref")) for v in votes)

    monkeypatch.setattr(_triton, "HAS_COMPILER", False)  # of a machine with a GPU
    with pytest.warns(UserWarning, match="C compiler") as caught:
        assert [ops._compiled("traversal_pairs", "auto", torch.device("cuda")) for _ in range(2)] == [False] * 2
    assert len(caught) == 1
    with pytest.raises(InputError, match="C compiler"):
        ops._compiled("traversal_pairs", "triton", torch.device("cuda"))
