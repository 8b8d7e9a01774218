"""Multinomial logistic regression, which BetaVAE and Explicitness fit."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]
BLOCK = 4096  # points at a time: their class probabilities stay in cache
LENGTHS = [0.5**i for i in range(12)]  # of a step, until the loss falls
RIDGE = 1e-5  # a constant added to all biases changes nothing: the curvature alone is singular
SMALL = 2**16  # points times parameters up to which Newton's method by numpy costs less than torch's many calls


def fit_logistic(
    x: Tensor,  # [N, K]
    y: Tensor,  # [N] int64 in [0, num_classes)
    num_classes: int,
    *,
    tolerance: float = 1e-4,
    hessian_points: int = 2048,
) -> Callable[[Tensor], Tensor]:  # codes [M, K] -> their logits [C, M], float32
    """Minimises sum_n -log p(y_n | x_n) + |weight|^2 / 2, p the softmax of weight x + bias (the bias is
    free).

    The minimum of scikit-learn's LogisticRegression(C=1), to the same tolerance on the mean gradient (two
    classes: the penalty on the difference of the two weights, as there). Newton steps: few points and parameters
    with the exact curvature; else by conjugate gradients, with the gradient of all points and the curvature of
    `hessian_points` random ones, where there are many more starting from the optimum of those alone. Each step is
    checked on the whole loss and halved until it falls.
    """
    n, k = x.shape
    std, mean = torch.std_mean(x, 0, correction=0)
    std = torch.where(std.float().square() >= torch.finfo(torch.float32).tiny, std, 1.0)  # else no penalty is finite
    x, std = ((x - mean) / std).float(), std.float()
    rows = torch.cat([x.T, x.new_ones(1, n)])  # [K+1, N]
    penalty = torch.cat([(2.0 if num_classes == 2 else 1.0) / std**2, x.new_zeros(1)]) / n
    theta = x.new_zeros(num_classes, k + 1)
    theta[:, -1] = y.bincount(minlength=num_classes).clamp_min(1).log()

    def predict(codes: Tensor) -> Tensor:
        return theta[:, :-1] @ ((codes - mean) / std).float().T + theta[:, -1:]

    if n * theta.numel() <= SMALL:
        start, given, classes, ridge = (array.numpy(force=True) for array in (theta, rows, y, penalty))
        theta = torch.from_numpy(_newton(start, given, classes, ridge, tolerance)).to(theta)
        return predict
    pick = torch.randperm(n, generator=torch.Generator().manual_seed(0))[:hessian_points].to(x.device)
    sample = rows[:, pick]
    outer = (sample[:, None] * sample[None]).flatten(0, 1).T  # [M, (K+1)^2]

    def minimise(theta: Tensor, points: Tensor, classes: Tensor, tolerance: float) -> Tensor:
        blocks, size = points.split(BLOCK, 1), points.shape[1]
        target = torch.zeros_like(theta).index_add_(0, classes, points.T) / size

        def loss_and_gradient(theta: Tensor) -> tuple[float, Tensor]:
            total, gradient = 0.0, penalty * theta - target
            for block in blocks:
                p = theta @ block
                top = p.amax(0)
                p.sub_(top).exp_()
                partition = p.sum(0)
                total += float((partition.log() + top).sum(dtype=torch.float64))
                gradient += p @ (block / (partition * size)).T
            return total / size + float((theta * (penalty * theta / 2 - target)).sum(dtype=torch.float64)), gradient

        loss, gradient = loss_and_gradient(theta)
        for _ in range(50):
            if gradient.abs().amax() < tolerance:
                break
            step = _newton_direction(gradient, torch.softmax(theta @ sample, 0), sample, outer, penalty)
            slope = float((gradient * step).sum())
            for length in LENGTHS:
                moved = theta + length * step
                new_loss, new_gradient = loss_and_gradient(moved)
                if new_loss <= loss + 1e-4 * length * slope:
                    break
            else:
                break  # no shorter step lowers the loss any more: the rounding of float32 is reached
            theta, loss, gradient = moved, new_loss, new_gradient
        return theta

    if n > 16 * len(pick):  # with fewer, what the sample's own optimum costs is not saved again
        theta = minimise(theta, sample, y[pick], 10 * tolerance)
    theta = minimise(theta, rows, y, tolerance)
    return predict


def _newton(
    theta: Array,  # [C, K+1], to start from
    rows: Array,  # [K+1, N]
    y: Array,  # [N]
    penalty: Array,  # [K+1]
    tolerance: float,
) -> Array:
    """The minimum by Newton's method with the exact curvature."""
    (classes, size), n, every = theta.shape, rows.shape[1], np.arange(len(theta))
    target = (y == every[:, None]).astype(rows.dtype) @ rows.T / n

    def loss_and_probabilities(theta: Array) -> tuple[float, Array]:
        p = theta @ rows
        top = p.max(0)
        p = np.exp(p - top)
        partition = p.sum(0)
        loss = (np.log(partition) + top).mean(dtype=float) + (theta * (penalty * theta / 2 - target)).sum()
        return loss, p / partition

    loss, p = loss_and_probabilities(theta)
    for _ in range(50):
        gradient = p @ rows.T / n + penalty * theta - target
        if np.abs(gradient).max() < tolerance:
            break
        weighted = p[:, None] * rows  # [C, K+1, N]
        # Class by class: the threads that BLAS takes to a larger product would go on to spin against torch's.
        curvature = -(weighted @ weighted.reshape(-1, n).T).reshape(classes, size, classes, size)
        curvature[every, :, every] += weighted @ rows.T
        curvature = curvature.reshape(theta.size, -1) / n
        curvature.flat[:: theta.size + 1] += np.tile(penalty + np.float32(RIDGE), classes)
        step = np.linalg.solve(curvature, -gradient.ravel()).reshape(theta.shape)
        slope = (gradient * step).sum()
        for length in LENGTHS:
            new_loss, new_p = loss_and_probabilities(theta + length * step)
            if new_loss <= loss + 1e-4 * length * slope:
                break
        else:
            break
        theta, loss, p = theta + length * step, new_loss, new_p
    return theta


def _newton_direction(gradient: Tensor, p: Tensor, sample: Tensor, outer: Tensor, penalty: Tensor) -> Tensor:
    """-H^-1 gradient to a tenth, H the curvature over `sample` [K+1, M], whose classes have probability p."""
    points = sample.T / sample.shape[1]
    ridge = penalty + RIDGE
    blocks = ((p * (1 - p)) @ outer).unflatten(1, (len(sample), -1)) / sample.shape[1] + torch.diag(ridge)
    inverse = torch.linalg.inv(blocks)  # of each class by itself, the preconditioner

    step, residual = torch.zeros_like(gradient), -gradient
    direction = (inverse @ residual[..., None])[..., 0]
    slope, enough = (residual * direction).sum(), 0.1 * gradient.norm()
    for _ in range(20):
        change = direction @ sample
        change = p * (change - (p * change).sum(0))
        curved = change @ points + ridge * direction
        size = slope / (direction * curved).sum()
        step += size * direction
        residual = residual - size * curved
        if residual.norm() < enough:
            break
        scaled = (inverse @ residual[..., None])[..., 0]
        new_slope = (residual * scaled).sum()
        direction, slope = scaled + new_slope / slope * direction, new_slope
    return step
