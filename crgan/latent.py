"""The latent traversals that pictures show, and the order in which codes come in; the draws of a step are in `ops`."""

import torch
from torch import Tensor


def traversal_codes(
    base: Tensor,  # [K], the codes that stand still
    num_values: int,
    low: float,
    high: float,
) -> Tensor:  # [K, num_values, K]
    """Latent traversal: row i walks code i from `low` to `high` while the others keep their value in `base`."""
    codes = base.expand(len(base), num_values, -1).clone()
    rows = torch.arange(len(base))
    codes[rows, :, rows] = torch.linspace(low, high, num_values, device=base.device)
    return codes


def code_presence(num_codes: int, code_steps: int, step: Tensor | int, device: torch.device | str) -> Tensor:
    """How far each code has come in, [K] in [0, 1]: see Config.code_steps."""
    code = torch.arange(num_codes, device=device)
    since = torch.as_tensor(step, device=device) - (code - 1) * code_steps
    return (since / code_steps).clamp(0, 1).where(code > 1, 1.0)
