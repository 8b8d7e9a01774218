"""H's last layer and its loss, fused: which code does a pair of images share?

Minimum traffic, for B rows of D float32 features: the forward reads 4 B D bytes; the backward reads them again and
writes as many: 34 and 67 MB at 65,536 x 128. Where D > BLOCK_D, the backward reads them D / BLOCK_D + 1 times: 101
MB there, of which caches serve a part. Partial sums of the gradients add 3 MB, written and read.
"""

from typing import Any

import torch
from torch import Tensor

from ._triton import MIN_DOT, device_guard, jit, tl, triton


def contrastive_loss_ref(features: Tensor, weight: Tensor, bias: Tensor, index: Tensor) -> Tensor:
    """Define `crgan.contrastive_loss` in PyTorch: in float64 for float64 features, else in float32."""
    dtype = torch.promote_types(features.dtype, torch.float32)
    with torch.autocast(features.device.type, enabled=False):
        logits = features.to(dtype) @ weight.to(dtype).T + bias.to(dtype)  # [B, K]
    log_prob = logits.log_softmax(dim=1).gather(1, index[:, None])
    return (-log_prob).sum() / max(len(index), 1)  # an empty batch has loss 0 and gradients 0


# A program takes `rows` rows, BLOCK_B at a time, with the logits of a block in registers only. `sum_kernel` adds
# the sums of several programs in a fixed order: no atomics, so that equal input gives equal bits. Products are
# nearly as exact as in float32 whatever the types in memory: "tf32x3", three on the matrix units, or "ieee", which
# takes fewer registers. Codes are padded to BLOCK_K.


@jit
def _load_tile(ptr, row, num_rows, d, D: tl.constexpr):
    mask = (row < num_rows)[:, None] & (d < D)[None, :]
    return tl.load(ptr + row.to(tl.int64)[:, None] * D + d[None, :], mask=mask, other=0.0).to(tl.float32)


@jit
def _logits(
    features, weight, bias, row, batch, K: tl.constexpr, D: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return the logits [rows, BLOCK_K], -inf beyond the codes."""
    code = tl.arange(0, BLOCK_K)
    logits = tl.zeros([row.shape[0], BLOCK_K], tl.float32)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        x = _load_tile(features, row, batch, d, D)
        w = _load_tile(weight, code, K, d, D)
        logits = tl.dot(x, tl.trans(w), logits, input_precision=PRECISION)
    return logits + tl.load(bias + code, mask=code < K, other=float("-inf")).to(tl.float32)[None, :]


@jit
def forward_kernel(
    features, weight, bias, index,  # [B, D], [K, D], [K], [B]
    loss,  # shares of the mean, a program's stride apart
    stride, rows, batch, K: tl.constexpr, D: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    code = tl.arange(0, BLOCK_K)[None, :]
    losses = tl.zeros([BLOCK_B], tl.float32)
    for start in range(program * rows, min(program * rows + rows, batch), BLOCK_B):
        row = start + tl.arange(0, BLOCK_B)
        logits = _logits(features, weight, bias, row, batch, K, D, BLOCK_K, BLOCK_D, PRECISION)
        label = tl.load(index + row, mask=row < batch, other=0).to(tl.int32)
        # loss = log(sum_k exp(logit_k)) - logit_index; NaN where there is no such code
        top = tl.max(logits, axis=1)
        log_sum = top + tl.log(tl.sum(tl.exp(logits - top[:, None]), axis=1))
        target = tl.sum(tl.where(code == label[:, None], logits, 0.0), axis=1)
        target = tl.where((label >= 0) & (label < K), target, float("nan"))
        losses += tl.where(row < batch, log_sum - target, 0.0)
    tl.store(loss + program * stride, tl.sum(losses, axis=0) / batch)


@jit
def backward_kernel(
    grad, features, weight, bias, index,  # [], [B, D], [K, D], [K], [B]
    grad_features, grad_weight, grad_bias,  # [B, D]; [K, D] and [K], a program's stride apart
    stride, rows, batch, K: tl.constexpr, D: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of a program's rows for BLOCK_D of the features, from logits computed again."""
    program, chunk = tl.program_id(0), tl.program_id(1)
    code = tl.arange(0, BLOCK_K)
    d = chunk * BLOCK_D + tl.arange(0, BLOCK_D)
    w = _load_tile(weight, code, K, d, D)
    scale = tl.load(grad).to(tl.float32) / batch
    sum_weight = tl.zeros([BLOCK_K, BLOCK_D], tl.float32)
    sum_bias = tl.zeros([BLOCK_K], tl.float32)
    for start in range(program * rows, min(program * rows + rows, batch), BLOCK_B):
        row = start + tl.arange(0, BLOCK_B)
        logits = _logits(features, weight, bias, row, batch, K, D, BLOCK_K, BLOCK_D, PRECISION)
        label = tl.load(index + row, mask=row < batch, other=0).to(tl.int32)
        # d loss / d logit_k = (softmax_k - [k == index]) / B =: error
        # d features = error weight,  d weight = error^T features,  d bias = sum over the batch of error
        exp = tl.exp(logits - tl.max(logits, axis=1)[:, None])
        softmax = exp / tl.sum(exp, axis=1)[:, None]
        error = (softmax - tl.where(code[None, :] == label[:, None], 1.0, 0.0)) * scale
        error = tl.where((row < batch)[:, None], error, 0.0)
        x = _load_tile(features, row, batch, d, D)
        grad_x = tl.dot(error, w, input_precision=PRECISION)
        sum_weight = tl.dot(tl.trans(error), x, sum_weight, input_precision=PRECISION)
        sum_bias += tl.sum(error, axis=0)
        place = row.to(tl.int64)[:, None] * D + d[None, :]
        tl.store(grad_features + place, grad_x, mask=(row < batch)[:, None] & (d < D)[None, :])
    if chunk == 0:
        tl.store(grad_bias + program.to(tl.int64) * stride + code, sum_bias, mask=code < K)
    place = (program.to(tl.int64) * stride + code * D)[:, None] + d[None, :]
    tl.store(grad_weight + place, sum_weight, mask=(code < K)[:, None] & (d < D)[None, :])


@jit
def sum_kernel(partial, programs, stride, out1, n1, out2, n2, BLOCK: tl.constexpr, BLOCK_P: tl.constexpr):
    """Add up the rows of partial [programs, stride]: n1 columns into out1, the next n2 into out2."""
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK_P, BLOCK], tl.float32)
    for start in range(0, programs, BLOCK_P):
        program = start + tl.arange(0, BLOCK_P)
        mask = (program < programs)[:, None] & (column < n1 + n2)[None, :]
        total += tl.load(partial + program.to(tl.int64)[:, None] * stride + column[None, :], mask=mask, other=0.0)
    value = tl.sum(total, axis=0)
    tl.store(out1 + column, value, mask=column < n1)
    tl.store(out2 + column - n1, value, mask=(column >= n1) & (column < n1 + n2))


SUM_CONFIG = {"BLOCK": 16, "BLOCK_P": 128, "enable_fp_fusion": True}


def config(kernel: Any, num_codes: int) -> dict:
    """Return tiles of 64 rows and 64 features, smaller for many codes, so that they fit into the registers."""
    block_k = max(MIN_DOT, triton.next_power_of_2(num_codes))
    tile = max(16, min(64, 1024 // block_k))
    return {
        "BLOCK_B": tile,
        "BLOCK_K": block_k,
        "BLOCK_D": tile,
        "PRECISION": "tf32x3" if block_k < 256 else "ieee",
        "num_warps": 4 if kernel is forward_kernel and block_k < 128 else 8,
        "enable_fp_fusion": True,
        "maxnreg": 255,  # all there are: by default the assembler spills a few to fit one more program
    }


def _run(kernel: Any, inputs: list[Tensor], outs: list[Tensor], shape: tuple[int, int, int]) -> None:
    """Launch `kernel`, whose sums go into `outs`, through one partial sum per program if there are several."""
    batch, num_codes, width = shape
    inputs = [t.contiguous() for t in inputs]
    tiles = config(kernel, num_codes)
    # more rows than codes, so that the partial sums stay smaller than the features; at most 1024 programs
    rows = 64 * triton.cdiv(max(num_codes, triton.cdiv(batch, 1024)), 64)
    programs = triton.cdiv(batch, rows)
    chunks = triton.cdiv(width, tiles["BLOCK_D"]) if kernel is backward_kernel else 1
    n1, n2 = outs[0].numel(), outs[1].numel() if len(outs) > 1 else 0
    stride, targets = 16 * triton.cdiv(n1 + n2, 16), outs
    if programs > 1:
        sums = torch.empty(programs, stride, dtype=torch.float32, device=inputs[0].device)
        targets = [sums, sums[:, n1:]][: len(outs)]
    with device_guard(inputs[0].device):
        kernel[programs, chunks](*inputs, *targets, stride, rows, batch, K=num_codes, D=width, **tiles)
        if programs > 1:
            grid = (triton.cdiv(n1 + n2, SUM_CONFIG["BLOCK"]),)
            sum_kernel[grid](sums, programs, stride, outs[0], n1, outs[-1], n2, **SUM_CONFIG)


@torch.library.custom_op("crgan::contrastive_loss", mutates_args=())
def contrastive_loss_triton(features: Tensor, weight: Tensor, bias: Tensor, index: Tensor) -> Tensor:
    loss = features.new_empty((), dtype=torch.float32)
    _run(forward_kernel, [features, weight, bias, index], [loss], (len(index), *weight.shape))
    return loss


@torch.library.custom_op("crgan::contrastive_loss_backward", mutates_args=())
def _contrastive_loss_backward(
    grad: Tensor, features: Tensor, weight: Tensor, bias: Tensor, index: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    grads = [t.new_empty(t.shape) for t in (features, weight, bias)]
    _run(backward_kernel, [grad, features, weight, bias, index, grads[0]], grads[1:], (len(index), *weight.shape))
    return tuple(grads)


contrastive_loss_triton.register_fake(lambda features, *rest: features.new_empty((), dtype=torch.float32))
contrastive_loss_triton.register_autograd(
    lambda ctx, grad: (*_contrastive_loss_backward(grad, *ctx.saved_tensors), None),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)
_contrastive_loss_backward.register_fake(lambda grad, *inputs: tuple(t.new_empty(t.shape) for t in inputs[:3]))
