"""The vote of each group in the FactorVAE score, in PyTorch; the compiled kernels are in csrc/."""

import torch
from torch import Tensor


def group_votes_ref(
    codes: Tensor,  # [..., G, L, K]
    scale: Tensor,  # [..., K]
) -> Tensor:  # [..., G] int64
    """Compute the definition of `crgan.group_votes`, in float64 for float64 codes, else in float32."""
    x = codes.detach().to(torch.promote_types(codes.dtype, torch.float32))
    scale = scale.detach().to(x.dtype)[..., None, :]
    deviation = x - x.mean(dim=-2, keepdim=True)
    spread = (deviation * deviation).mean(dim=-2) / scale / scale  # [..., G, K]; scale^2 alone could underflow
    if not spread.shape[-1]:
        return torch.full(x.shape[:-2], -1, device=x.device)
    usable = (scale > 0) & scale.isfinite() & spread.isfinite()
    votes = spread.masked_fill(~usable, torch.inf).argmin(dim=-1)
    return votes.masked_fill(~usable.any(dim=-1), -1)
