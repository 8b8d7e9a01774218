"""Mutual information of binned codes and factors, which MIG and Modularity share."""

import numpy as np
import torch
from torch import Tensor


def bin_equal_width(values: Tensor, bins: int) -> Tensor:  # [N, K] -> [N, K] int64 in [0, bins)
    """Bins each column between its least and its largest value, with numpy's edges: none changes its bin. A column that
    varies by rounding alone counts as constant."""
    columns = values.T.contiguous()
    least, most = columns.aminmax(dim=1, keepdim=True)
    rounding = torch.finfo(columns.dtype).eps * torch.maximum(least.abs(), most.abs())
    columns = columns.where(most - least > 4 * bins * rounding, 0)
    of_column = [np.histogram_bin_edges(column, bins) for column in columns.cpu().numpy()]
    edges = torch.from_numpy(np.stack(of_column)).to(columns)
    low, high = edges[:, :1], edges[:, -1:]
    place = ((columns - low) * (bins / (high - low))).long().clamp_(0, bins - 1)
    place -= (columns < edges.gather(1, place)).long()  # division may be off by one beside an edge
    place += (columns >= edges[:, 1:].gather(1, place)).long()
    return place.clamp_(max=bins - 1).T  # the largest value closes the last bin


def joint_counts(codes: Tensor, factors: Tensor, bins: int) -> list[Tensor]:
    """Per factor, the counts [K, bins, classes] of every bin of every code with every class, float64."""
    binned = bin_equal_width(codes, bins)
    num_codes = binned.shape[1]
    rows = (binned + torch.arange(num_codes, device=binned.device) * bins).T.contiguous()  # [K, N]
    counts = []
    for column in factors.T:
        present, column = column.unique(return_inverse=True)
        classes = len(present)
        joint = torch.bincount((rows * classes + column).view(-1), minlength=num_codes * bins * classes)
        counts.append(joint.view(num_codes, bins, classes).double())
    return counts


def mutual_information(codes: Tensor, factors: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """I(code k; factor f) [K, F] and the entropies H(factor f) [F], in nats, float64."""

    def entropy(counts: Tensor) -> Tensor:  # [..., n] -> [...]
        return torch.special.entr(counts / len(codes)).sum(-1)

    columns, entropies = [], []
    for joint in joint_counts(codes, factors, bins):
        of_factor = entropy(joint[0].sum(0))
        columns.append(entropy(joint.sum(2)) + of_factor - entropy(joint.flatten(1)))
        entropies.append(of_factor)
    return torch.stack(columns, 1).clamp_(min=0), torch.stack(entropies)
