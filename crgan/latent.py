"""The code prior, and the latent traversals that pictures show; the draws of a training step are in `ops`."""

import torch
from torch import Tensor


def traversal_codes(
    base: Tensor,  # [K], the codes that stand still
    num_values: int,
    low: float = -1.0,
    high: float = 1.0,
) -> Tensor:  # [K, num_values, K]
    """Latent traversal: row i walks code i from `low` to `high` while the others keep their value in `base`."""
    codes = base.expand(len(base), num_values, -1).clone()
    rows = torch.arange(len(base))
    codes[rows, :, rows] = torch.linspace(low, high, num_values, device=base.device)
    return codes
