"""dHSIC: are the codes jointly independent?"""

from typing import Any

import numpy as np
import torch

from .arrays import active_dimensions, codes_array


def dhsic(
    codes: Any,  # [n, K]
) -> dict[str, Any]:
    """Compute the d-variable Hilbert-Schmidt independence criterion (Pfister et al. 2018, eq. 3).

    Independent codes have 0. With k_j(a, b) = exp(-|a - b| / h_j^2), h_j the median of |a - b| over all pairs of the n
    rows of code j: mean_ab prod_j k_j + prod_j mean_ab k_j - 2 mean_a prod_j mean_b k_j, as the original code of
    InfoGAN-CR has it. A constant code has k = 1. Needs memory for three matrices [n, n]. Returns score
    and terms [3].
    """
    points = codes_array(codes, "codes", "n K").cpu()
    kernel = torch.empty(len(points), len(points), dtype=torch.float64)
    joint = torch.ones_like(kernel)
    means = [torch.ones(len(points), dtype=torch.float64)]
    for x in points.double().T[active_dimensions(points)[1]]:
        torch.sub(x[:, None], x, out=kernel).abs_()
        width = float(np.median(kernel.numpy())) ** 2
        if width > 0:
            kernel.div_(-width).exp_()
        else:  # the limit, where most pairs are ties
            kernel = (kernel == 0).double()
        joint *= kernel
        means.append(kernel.mean(1))
    rows = torch.stack(means)  # [1 + K, n]
    terms = np.array([float(joint.mean()), float(rows.mean(1).prod()), -2 * float(rows.prod(0).mean())])
    return {"score": float(terms.sum()), "terms": terms}
