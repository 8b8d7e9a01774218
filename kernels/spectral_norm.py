"""Spectral norm of all layers of a network at once: a handful of launches where plain PyTorch makes hundreds."""

import functools
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ._triton import device_guard, jit, tl


def spectral_norm_ref(matrices: list[Tensor], vectors: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Define `crgan.ops.spectral_norm` in PyTorch: in float64 for float64 matrices, else in float32."""
    normalised, moved = [], []
    for matrix, u in zip(matrices, vectors, strict=True):
        with torch.autocast(matrix.device.type, enabled=False):
            v = normalize(u @ matrix, dim=0)
            product = matrix @ v
            next_u = normalize(product, dim=0)
            normalised.append(matrix / (next_u @ product).clamp(min=1e-12))  # a zero matrix stays one
            moved.append(next_u.detach())
    return normalised, moved


# With a = W^T u, v = a / |a| and t = W v:  next u = t / |t|,  sigma = |t|,  result = W / sigma.
# For the gradient G of the result and <G, result> = sum of the products of their elements:
#     d sigma = next_u v^T + u r^T,  r = (W^T next_u - sigma v) / |a|
#     dW = (G - <G, result> d sigma) / sigma
# What all blocks of a matrix need is summed up in one launch and read in the next; no atomics, so that equal input
# gives equal bits. Layer l, whose addresses and sizes are in row l of `table`, is the second index of the grid.

# A program takes BLOCK_C columns and walks down all rows; or BLOCK_R rows, and all columns; or BLOCK elements.
COLUMNS = {"BLOCK_R": 32, "BLOCK_C": 64, "num_warps": 4, "enable_fp_fusion": True}
ROWS = {"BLOCK_R": 8, "BLOCK_C": 256, "num_warps": 4, "enable_fp_fusion": True}
ELEMENTS = {"BLOCK": 1024, "num_warps": 4, "enable_fp_fusion": True}


@jit
def _layer(table):
    """Return W, u, rows, columns, and where the layer's part of the results, the state and the sums begins."""
    row = table + tl.program_id(1) * 7
    weight = tl.load(row).to(tl.pointer_type(tl.float32))
    u = tl.load(row + 1).to(tl.pointer_type(tl.float32))
    rows, columns = tl.load(row + 2).to(tl.int32), tl.load(row + 3).to(tl.int32)
    return weight, u, rows, columns, tl.load(row + 4), tl.load(row + 5), tl.load(row + 6)


@jit
def _length(x, n, BLOCK: tl.constexpr):
    """Return |x|, but no less than the 1e-12 of torch's normalize."""
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, n, BLOCK):
        i = start + tl.arange(0, BLOCK)
        value = tl.load(x + i, mask=i < n, other=0.0)
        total += value * value
    return tl.maximum(tl.sqrt(tl.sum(total, axis=0)), 1e-12)


@jit
def project_kernel(table, state, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """Compute a = W^T u."""
    weight, u, rows, columns, _, place, _ = _layer(table)
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    total = tl.zeros([BLOCK_C], tl.float32)
    for start in range(0, rows, BLOCK_R):
        r = start + tl.arange(0, BLOCK_R)
        mask = (r < rows)[:, None] & (c < columns)[None, :]
        tile = tl.load(weight + r[:, None] * columns + c[None, :], mask=mask, other=0.0)
        total += tl.sum(tile * tl.load(u + r, mask=r < rows, other=0.0)[:, None], axis=0)
    tl.store(state + place + c, total, mask=c < columns)


@jit
def multiply_kernel(table, state, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """Compute t = W v."""
    weight, _, rows, columns, _, place, _ = _layer(table)
    a = state + place
    r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    total = tl.zeros([BLOCK_R], tl.float32)
    for start in range(0, columns, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        mask = (r < rows)[:, None] & (c < columns)[None, :]
        tile = tl.load(weight + r[:, None] * columns + c[None, :], mask=mask, other=0.0)
        total += tl.sum(tile * tl.load(a + c, mask=c < columns, other=0.0)[None, :], axis=1)
    tl.store(a + columns + r, total / _length(a, columns, BLOCK_C), mask=r < rows)


@jit
def divide_kernel(table, state, out, BLOCK: tl.constexpr):
    """Compute W / sigma, and in the first program of a layer its next u."""
    weight, _, rows, columns, begin, place, _ = _layer(table)
    t = state + place + columns
    sigma = _length(t, rows, BLOCK)
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = i < rows * columns
    tl.store(out + begin + i, tl.load(weight + i, mask=mask, other=0.0) / sigma, mask=mask)
    if tl.program_id(0) == 0:
        for start in range(0, rows, BLOCK):
            r = start + tl.arange(0, BLOCK)
            value = tl.load(t + r, mask=r < rows, other=0.0)
            tl.store(t + rows + r, value / sigma, mask=r < rows)


@jit
def reduce_kernel(table, state, out, grad, sums, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """Compute b = result^T next_u = W^T next_u / sigma, and a share of <G, result> for each block of columns."""
    _, _, rows, columns, begin, place, place_sums = _layer(table)
    next_u = state + place + columns + rows
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    total = tl.zeros([BLOCK_C], tl.float32)
    inner = tl.zeros([BLOCK_C], tl.float32)
    for start in range(0, rows, BLOCK_R):
        r = start + tl.arange(0, BLOCK_R)
        mask = (r < rows)[:, None] & (c < columns)[None, :]
        i = begin + r[:, None] * columns + c[None, :]
        tile = tl.load(out + i, mask=mask, other=0.0)
        total += tl.sum(tile * tl.load(next_u + r, mask=r < rows, other=0.0)[:, None], axis=0)
        inner += tl.sum(tile * tl.load(grad + i, mask=mask, other=0.0), axis=0)
    tl.store(sums + place_sums + c, total, mask=c < columns)
    if tl.program_id(0) * BLOCK_C < columns:
        tl.store(sums + place_sums + columns + tl.program_id(0), tl.sum(inner, axis=0))


@jit
def gradient_kernel(table, state, grad, sums, grad_weight, BLOCK: tl.constexpr, BLOCK_C: tl.constexpr):
    """Compute dW."""
    _, u, rows, columns, begin, place, place_sums = _layer(table)
    a, t, next_u = state + place, state + place + columns, state + place + columns + rows
    length, sigma = _length(a, columns, BLOCK), _length(t, rows, BLOCK)
    shares = tl.zeros([BLOCK], tl.float32)
    blocks = tl.cdiv(columns, BLOCK_C)
    for start in range(0, blocks, BLOCK):
        n = start + tl.arange(0, BLOCK)
        shares += tl.load(sums + place_sums + columns + n, mask=n < blocks, other=0.0)
    inner = tl.sum(shares, axis=0)
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = i < rows * columns
    r = i // columns
    c = i - r * columns
    v = tl.load(a + c, mask=mask, other=0.0) / length
    slope = sigma * (tl.load(sums + place_sums + c, mask=mask, other=0.0) - v) / length  # r of the formula
    turn = tl.load(next_u + r, mask=mask, other=0.0) * v + tl.load(u + r, mask=mask, other=0.0) * slope
    value = (tl.load(grad + begin + i, mask=mask, other=0.0) - inner * turn) / sigma
    tl.store(grad_weight + begin + i, value, mask=mask)


def _sizes(shapes: tuple[torch.Size, ...]) -> tuple[int, int, int]:
    """Count the numbers of all layers: results; state (a, t and next u); sums (b, and the shares of <G, result>)."""
    blocks = sum(-(-c // COLUMNS["BLOCK_C"]) for _, c in shapes)
    rows, columns = sum(r for r, _ in shapes), sum(c for _, c in shapes)
    return sum(r * c for r, c in shapes), columns + 2 * rows, columns + blocks


@functools.cache  # never emptied: a captured graph reads its table again at each replay
def _make_table(device: torch.device, shapes: tuple[torch.Size, ...], addresses: tuple[int, ...]) -> Tensor:
    """Return [layers, 7] int64: the addresses of W and u, rows, columns, and the places by `_sizes`."""
    layers = zip(addresses, addresses[len(shapes) :], shapes)
    content = [(w, u, *shape, *_sizes(shapes[:n])) for n, (w, u, shape) in enumerate(layers)]
    return torch.tensor(content, dtype=torch.int64, device=device)


def _prepare(matrices: list[Tensor], vectors: list[Tensor]) -> tuple[Tensor, list[tuple[int, int]], list[Tensor]]:
    """Return the table of all layers, the launch grids by COLUMNS, ROWS and ELEMENTS, and the tensors behind the
    table's addresses, to be held until the kernels are launched."""
    shapes, given = tuple(m.shape for m in matrices), [*matrices, *vectors]
    held = [t.contiguous() for t in given]
    reusable = all(t.is_contiguous() for t in given)  # a copy will have another address at the next call
    make = _make_table if reusable else _make_table.__wrapped__
    table = make(matrices[0].device, shapes, tuple(t.data_ptr() for t in held))
    rows, columns, elements = max(r for r, _ in shapes), max(c for _, c in shapes), max(r * c for r, c in shapes)
    blocks = ((columns, COLUMNS["BLOCK_C"]), (rows, ROWS["BLOCK_R"]), (elements, ELEMENTS["BLOCK"]))
    return table, [(-(-n // block), len(matrices)) for n, block in blocks], held


def spectral_norm_triton(matrices: list[Tensor], vectors: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    flat, state = _spectral_norm(matrices, vectors)
    normalised = [part.view_as(m) for part, m in zip(flat.split([m.numel() for m in matrices]), matrices)]
    parts = state.detach().split([n for r, c in (m.shape for m in matrices) for n in (c + r, r)])
    return normalised, list(parts[1::2])


@torch.library.custom_op("crgan::spectral_norm", mutates_args=())
def _spectral_norm(matrices: list[Tensor], vectors: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the results of all layers, concatenated, and the state, which holds the next u and serves the gradient."""
    table, (by_columns, by_rows, by_elements), _held = _prepare(matrices, vectors)
    out, state = _spectral_norm_fake(matrices)
    with device_guard(table.device):
        project_kernel[by_columns](table, state, **COLUMNS)
        multiply_kernel[by_rows](table, state, **ROWS)
        divide_kernel[by_elements](table, state, out, **ELEMENTS)
    return out, state


@torch.library.custom_op("crgan::spectral_norm_backward", mutates_args=())
def _spectral_norm_backward(
    grad: Tensor, out: Tensor, state: Tensor, matrices: list[Tensor], vectors: list[Tensor]
) -> Tensor:
    """Return the gradients of all matrices, concatenated."""
    table, (by_columns, _, by_elements), _held = _prepare(matrices, vectors)
    grad, grad_weight = grad.contiguous(), torch.empty_like(out)
    sums = out.new_empty(_sizes(tuple(m.shape for m in matrices))[2])
    with device_guard(out.device):
        reduce_kernel[by_columns](table, state, out, grad, sums, **COLUMNS)
        gradient_kernel[by_elements](table, state, grad, sums, grad_weight, BLOCK_C=COLUMNS["BLOCK_C"], **ELEMENTS)
    return grad_weight


def _spectral_norm_fake(matrices: list[Tensor], vectors: Any = None) -> tuple[Tensor, Tensor]:
    out, state, _ = _sizes(tuple(m.shape for m in matrices))
    return matrices[0].new_empty(out), matrices[0].new_empty(state)


def _save(ctx, inputs, output):
    ctx.layers = len(inputs[0])
    ctx.save_for_backward(*output, *inputs[0], *inputs[1])


def _differentiate(ctx, grad_out, grad_state):
    out, state, *rest = ctx.saved_tensors
    matrices, vectors = rest[: ctx.layers], rest[ctx.layers :]
    grad = _spectral_norm_backward(grad_out, out, state, matrices, vectors)
    parts = grad.split([m.numel() for m in matrices])
    return [part.view_as(m) for part, m in zip(parts, matrices)], [None] * len(vectors)


_spectral_norm.register_fake(_spectral_norm_fake)
_spectral_norm.register_autograd(_differentiate, setup_context=_save)
_spectral_norm_backward.register_fake(lambda grad, out, *rest: torch.empty_like(out))
