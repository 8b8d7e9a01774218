"""The vote of each group in the FactorVAE score, in PyTorch; the compiled kernels are in csrc/."""

import importlib

import torch
from torch import Tensor


def group_votes_ref(codes: Tensor, scale: Tensor) -> Tensor:  # [..., G, L, K], [..., K] -> [..., G] int64
    """Define `crgan.group_votes` in PyTorch: in float64 for float64 codes, else in float32."""
    x = codes.detach().to(torch.promote_types(codes.dtype, torch.float32))
    scale = scale.detach().to(x.dtype)[..., None, :]
    deviation = x - x.mean(dim=-2, keepdim=True)
    spread = (deviation * deviation).mean(dim=-2) / scale / scale  # [..., G, K]; scale^2 alone could underflow
    if not spread.shape[-1]:
        return torch.full(x.shape[:-2], -1, device=x.device)
    usable = (scale > 0) & scale.isfinite() & spread.isfinite()
    votes = spread.masked_fill(~usable, torch.inf).argmin(dim=-1)
    return votes.masked_fill(~usable.any(dim=-1), -1)


def _load(module: str, where: str = "") -> str:
    """Load the kernels for one type of device; return "", or why there are none and what to do."""
    try:
        importlib.import_module(module)
    except ImportError as error:
        return f"the extension is not installed ({error}), run `pip install --no-build-isolation .`{where}"
    return ""


torch.library.define("crgan::group_votes", "(Tensor codes, Tensor scale) -> Tensor")
MISSING = {"cpu": _load("_crgan_C"), "cuda": _load("_crgan_cuda", " where torch has CUDA and nvcc is found")}


@torch.library.register_fake("crgan::group_votes")
def _(codes, scale):
    return codes.new_empty(codes.shape[:-2], dtype=torch.int64)
