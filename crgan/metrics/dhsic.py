"""dHSIC: are the codes jointly independent?"""

from typing import Any

import torch
from torch import Tensor

from .arrays import active_dimensions, codes_array


def dhsic(
    codes: Any,  # [n, K]
) -> dict[str, Any]:
    """d-variable Hilbert-Schmidt independence criterion (Pfister et al. 2018, eq. 3); 0: independent codes.

    With k_j(a, b) = exp(-|a - b| / h_j^2), h_j the median of |a - b| over all pairs of the n rows of code j:
    mean_ab prod_j k_j + prod_j mean_ab k_j - 2 mean_a prod_j mean_b k_j, as the original code of InfoGAN-CR
    has it.

    The product of kernels is one exponential of an L1 distance, summed in blocks of rows; the sums over one
    code are running sums over its sorted values. A constant code has k = 1. Returns score and terms [3].
    """
    codes = codes_array(codes, "codes", "n K")
    x = (codes.double() - codes.double().mean(0)).T.contiguous()  # [K, n]
    ordered, order = x.sort(1)
    width = _median_distance(ordered).square()[:, None]
    # With most pairs equal the median is 0 and the kernel tends to [a = b]: set apart what differs.
    steps = (ordered.diff(dim=1) > 0).cumsum(1).to(x) * 800
    steps = torch.cat([torch.zeros_like(steps[:, :1]), steps], 1)
    ordered = torch.where(width > 0, ordered / width.clamp(min=1e-300), steps)
    ordered = ordered * active_dimensions(codes)[1][:, None]
    below = (ordered.logcumsumexp(1) - ordered).exp()  # sum over b <= a of exp(b - a)
    above = ((-ordered).flip(1).logcumsumexp(1).flip(1) + ordered).exp()
    means = torch.empty_like(x).scatter_(1, order, (below + above - 1) / x.shape[1])
    scaled = torch.empty_like(x).scatter_(1, order, ordered).T.float().contiguous()
    n, joint = len(scaled), 0.0
    for start in range(0, n, 256):
        rows = scaled[start : start + 256]
        kernel = torch.cdist(rows, scaled[start:], p=1).neg_().exp_()
        # Each pair of blocks once: the block on the diagonal holds both orders of its pairs already.
        joint += float(2 * kernel.sum(dtype=torch.float64) - kernel[:, : len(rows)].sum(dtype=torch.float64))
    terms = torch.tensor([joint / n**2, means.mean(1).prod(), -2 * means.prod(0).mean()], dtype=torch.float64)
    return {"score": float(terms.sum()), "terms": terms.numpy()}


def _median_distance(ordered: Tensor) -> Tensor:  # [K, n] sorted -> [K]
    """Median of |a - b| over all n^2 pairs, by bisection on the number of pairs within a distance."""
    num_codes, n = ordered.shape
    ranks = torch.tensor([(n * n + 1) // 2, n * n // 2 + 1], device=ordered.device)[:, None]

    def enough(distance: Tensor) -> Tensor:  # [2, K]: are at least `ranks` pairs that close?
        ends = (ordered + distance[..., None]).transpose(0, 1).flatten(1)
        reach = torch.searchsorted(ordered, ends, right=True).view(num_codes, 2, n).sum(2).T
        return 2 * reach - n * n >= ranks  # reach counts b - a <= distance, all negative b - a included

    low = torch.zeros(2, num_codes, dtype=ordered.dtype, device=ordered.device)
    high = torch.where(enough(low), 0.0, (ordered[:, -1] - ordered[:, 0]).expand(2, -1))
    for _ in range(60):
        middle = (low + high) / 2
        close = enough(middle)
        low, high = torch.where(close, low, middle), torch.where(close, middle, high)
    return high.mean(0)
