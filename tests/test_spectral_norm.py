"""Spectral norm of all layers of a network: values, gradients, and what it refuses."""

import pytest
import torch
from _crgan_kernels import spectral_norm as kernels
from op_checks import assert_as_exact
from torch.nn.functional import normalize

from crgan import InputError, ops


def sample_inputs():
    """Shapes of the layers."""
    dsprites = [(32, 16), (32, 512), (64, 512), (64, 1024), (128, 1024), (1, 128), (128, 128), (5, 128)]
    return [[(1, 1)], [(3, 5)], [(1, 300), (300, 1)], [(65, 130), (7, 1), (33, 257)], [(1030, 6)], dsprites]


def make(shapes, device="cpu", dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    matrices = [torch.randn(shape, generator=g).to(device, dtype).requires_grad_() for shape in shapes]
    vectors = [normalize(torch.randn(shape[0], generator=g), dim=0).to(device, dtype) for shape in shapes]
    upstream = [torch.randn(shape, generator=g).to(device, dtype) for shape in shapes]
    return matrices, vectors, upstream


def run(matrices, vectors, upstream, impl):
    """Results, next vectors and gradients."""
    normalised, moved = ops.spectral_norm(matrices, vectors, impl=impl)
    assert not any(u.requires_grad for u in moved)
    return [*normalised, *moved, *torch.autograd.grad(normalised, matrices, upstream)]


@pytest.mark.parametrize("shapes", sample_inputs(), ids=str)
def test_kernel_is_as_exact_as_the_reference(shapes, device):
    given = make(shapes, device)
    truth = run(*([t.detach().double().requires_grad_(t.requires_grad) for t in part] for part in given), "ref")
    names = [f"{what} {shape}" for what in ("result", "next u", "gradient") for shape in shapes]
    for name, *values in zip(names, run(*given, "triton"), run(*given, "ref"), truth, strict=True):
        assert_as_exact(*values, name, rounding=16, atol=1e-6)


@pytest.mark.parametrize("impl", ["ref", "triton"])
def test_iterations_find_the_largest_singular_value(impl):
    matrices, vectors, _ = make([(16, 48), (5, 7)])
    for _ in range(200):
        normalised, vectors = ops.spectral_norm(matrices, vectors, impl=impl)
    for result, matrix in zip(normalised, matrices):
        truth = matrix / torch.linalg.matrix_norm(matrix, 2)
        torch.testing.assert_close(result, truth, rtol=1e-4, atol=1e-5)


def test_gradients_of_the_reference_flow_through_the_iteration():
    matrices, vectors, _ = make([(5, 7), (2, 3)], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *given: ops.spectral_norm(given, vectors)[0], matrices)


@pytest.mark.parametrize("impl", ["ref", "triton"])
def test_a_part_of_the_results_has_a_gradient_and_strides_do_not_matter(impl):
    matrices, vectors, upstream = make([(4, 6), (5, 3)])
    expected = run(matrices, vectors, upstream, "ref")
    slanted = matrices[0].detach().T.contiguous().T.requires_grad_()
    result = ops.spectral_norm([slanted, matrices[1]], vectors, impl=impl)[0][0]
    (gradient,) = torch.autograd.grad(result, slanted, upstream[0])
    torch.testing.assert_close(result, expected[0])
    torch.testing.assert_close(gradient, expected[4])


@pytest.mark.parametrize("impl", ["ref", "triton"])
def test_a_zero_matrix_stays_one(impl):
    _, vectors, _ = make([(4, 6)])
    (result,), (u,) = ops.spectral_norm([torch.zeros(4, 6)], vectors, impl=impl)
    assert not result.any()
    assert not u.any()


def test_copies_leave_no_table_behind():
    matrices, vectors, _ = make([(4, 6), (5, 3)])
    ops.spectral_norm(matrices, vectors, impl="triton")
    before = kernels._make_table.cache_info().currsize
    for _ in range(3):
        ops.spectral_norm([m.detach().T.contiguous().T for m in matrices], vectors, impl="triton")
    assert kernels._make_table.cache_info().currsize == before


def test_opcheck_and_no_second_derivative():
    matrices, vectors, _ = make([(4, 6), (5, 3)])
    torch.library.opcheck(torch.ops.crgan.spectral_norm.default, (matrices, vectors))
    (first, _), _ = ops.spectral_norm(matrices, vectors, impl="triton")
    (gradient,) = torch.autograd.grad(first.square().sum(), matrices[0], create_graph=True)
    with pytest.raises(RuntimeError):
        gradient.sum().backward()


def test_compiles_without_a_graph_break():
    matrices, vectors, _ = make([(4, 6), (5, 3)])

    def loss(impl):
        return sum(w.square().sum() for w in ops.spectral_norm(matrices, vectors, impl=impl)[0])

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled("triton"), loss("ref"))


def test_mistakes_are_named():
    matrices, vectors, _ = make([(4, 6), (5, 3)])
    assert ops.spectral_norm([], []) == ([], [])
    with pytest.raises(InputError, match=r"matrices \[\[4, 6\], \[5, 3\]\], vectors \[\[4\]\]"):
        ops.spectral_norm(matrices, vectors[:1])
    with pytest.raises(InputError, match="expected all float32, or all float64"):
        ops.spectral_norm(matrices, [u.half() for u in vectors])
    with pytest.raises(InputError, match="the kernel reads float32; what can run here: auto, ref"):
        ops.spectral_norm([m.double() for m in matrices], [u.double() for u in vectors], impl="triton")
