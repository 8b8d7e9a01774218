"""The public ops: checks of shape and range, choice of the implementation, registration with torch.compile.

Every op takes `impl`: "ref" is plain PyTorch, "triton" and "ext" are compiled, "auto" takes the fastest that
can run here. An implementation asked for by name runs or raises; only "auto" falls back.
"""

import importlib

import torch
from torch import Tensor

from crgan.errors import InputError


def choose_impl(op: str, impl: str, obstacles: dict[str, str]) -> str:
    """The implementation of `op` to run.

    `obstacles` names the op's compiled implementations, fastest first, each with the reason why it cannot run
    on these arguments on this machine and the way out, or "" where it can. The reference always can.
    """
    usable = [name for name, obstacle in obstacles.items() if not obstacle] + ["ref"]
    if impl == "auto":
        return usable[0]
    if impl not in usable:
        obstacle = obstacles.get(impl, f"{op} has no such implementation")
        raise InputError(f"{op}(impl={impl!r}): {obstacle}; what can run here: auto, {', '.join(usable)}")
    return impl


# ---------------------------------------------------------------- vote table


def vote_table(
    codes: Tensor,  # [..., G, L, K] float32, float16 or bfloat16 (float64: reference only)
    scale: Tensor,  # [..., K], the encoder's standard deviation per dimension
    factor: Tensor,  # [G] integers in [0, num_factors), the factor held fixed in each group
    num_factors: int,
    *,
    impl: str = "auto",
) -> Tensor:  # [..., K, num_factors] int32
    """Votes of the FactorVAE score (Kim and Mnih 2018, section 4): votes[..., d, f] counts the groups with
    factor f in which dimension d varies least.

    In each group of L codes the dimension with the least var / scale^2 (ddof 0) votes for the group's factor;
    of equal ones the lowest index. Leading dimensions are independent (one per encoder, or per pair of
    models), and `scale` broadcasts over them. Computed in float32; 16-bit codes are widened first.

    A dimension does not vote where its scale is zero, negative, infinite or NaN, nor in a group where its
    variance is not finite, so a collapsed or broken code never wins. A group in which no dimension can vote
    casts none: `votes.sum((-2, -1))` is then less than G. In a group of one code every variance is 0, so the
    first usable dimension votes.

    Raises InputError on shapes, types or devices that do not fit, on factors out of range (on CUDA a
    device-side assertion, as a check would stall the stream), and where the named `impl` cannot run.
    """
    if codes.ndim < 3:
        raise InputError(f"vote_table: codes have shape {list(codes.shape)}, expected [..., groups, images, codes]")
    shape = [*codes.shape[:-3], codes.shape[-1]]
    try:
        scale = scale.expand(shape)
    except RuntimeError:
        raise InputError(
            f"vote_table: scale has shape {list(scale.shape)}, expected {shape}, one value per code"
        ) from None
    if factor.shape != codes.shape[-3:-2] or factor.is_floating_point():
        raise InputError(
            f"vote_table: factor is {factor.dtype} of shape {list(factor.shape)}, "
            f"expected int64 of shape {list(codes.shape[-3:-2])}, one per group"
        )
    if not (codes.is_floating_point() and scale.is_floating_point()):
        raise InputError(f"vote_table: codes are {codes.dtype}, scale is {scale.dtype}, expected floats")
    if not codes.device == scale.device == factor.device:
        raise InputError(
            f"vote_table: codes are on {codes.device}, scale on {scale.device}, factor on {factor.device}; "
            "move them to one device"
        )
    factor = factor.long()
    if factor.device.type == "cpu" and factor.numel() and not torch.compiler.is_compiling():
        low, high = (int(v) for v in factor.aminmax())
        if low < 0 or high >= num_factors:
            wrong = low if low < 0 else high
            raise InputError(f"vote_table: factor holds {wrong}, expected 0 <= factor < num_factors = {num_factors}")
    if choose_impl("vote_table", impl, {"ext": _extension_obstacle(codes)}) == "ext":
        return torch.ops.crgan.vote_table(codes.detach(), scale.detach().float(), factor, num_factors)
    return vote_table_ref(codes, scale, factor, num_factors)


def vote_table_ref(codes: Tensor, scale: Tensor, factor: Tensor, num_factors: int) -> Tensor:
    """The definition of `vote_table` in PyTorch: in float64 for float64 codes, else in float32."""
    x = codes.detach().to(torch.promote_types(codes.dtype, torch.float32))
    scale = scale.detach().to(x.dtype)[..., None, :]
    deviation = x - x.mean(dim=-2, keepdim=True)
    spread = (deviation * deviation).mean(dim=-2) / scale / scale  # [..., G, K]; scale^2 alone could underflow
    votes = torch.zeros(*x.shape[:-3], x.shape[-1] * num_factors, dtype=torch.int32, device=x.device)
    if spread.numel():
        usable = (scale > 0) & scale.isfinite() & spread.isfinite()
        winner = spread.masked_fill(~usable, torch.inf).argmin(dim=-1)  # [..., G]
        votes.scatter_add_(-1, winner * num_factors + factor, usable.any(dim=-1).int())
    return votes.unflatten(-1, (x.shape[-1], num_factors))


@torch.compiler.assume_constant_result
def _load_extension(device: str) -> str:
    """Loads the compiled modules for this kind of device; returns "" or what is in the way."""
    modules = {"cpu": ["_crgan_C"], "cuda": ["_crgan_C", "_crgan_cuda"]}  # the first defines the op
    if device not in modules:
        return f"the extension has no kernel for {device} tensors"
    try:
        for module in modules[device]:
            importlib.import_module(module)
    except ImportError as error:
        place = " where torch has CUDA and nvcc is found" if device == "cuda" else ""
        return f"the extension is not there ({error}), run `pip install --no-build-isolation .`{place}"
    return ""


def _extension_obstacle(codes: Tensor) -> str:
    if codes.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"the extension reads float32, float16 and bfloat16, the codes are {codes.dtype}"
    return _load_extension(codes.device.type)
