"""The terms of the objective, each a pure function that returns a 0-d tensor.

    min_{G,Q,H} max_D  L_adv(G, D) - lambda I(c; Q(G(c, z))) - alpha L_cr(G, H)        (Lin et al. 2020, section 3)

The contrastive term is `crgan.contrastive_loss`.
"""

import torch
from torch import Tensor
from torch.nn.functional import softplus

from .. import parallel


def discriminator_loss(
    real: Tensor,  # [B] logits of D on real images
    fake: Tensor,  # [B] logits of D on generated images
) -> Tensor:
    """Logistic loss -log D(x) - log(1 - D(G(c, z))); 2 ln 2 where D cannot tell (Goodfellow et al. 2014, eq. 1)."""
    return softplus(-real).mean() + softplus(fake).mean()


def generator_loss(
    fake: Tensor,  # [B] logits of D on generated images
) -> Tensor:
    """Non-saturating logistic loss -log D(G(c, z)) (Goodfellow et al. 2014, section 3)."""
    return softplus(-fake).mean()


def info_loss(
    codes: Tensor,  # [B, K] codes in [-1, 1] that made the images
    predicted: Tensor,  # [B, K] Q's estimate of them, its Gaussian's mean
    deviation: str = "one",
    weight: Tensor | None = None,  # [K], of each code; None: all 1
) -> Tensor:
    """-log q(c | x), less its constant, of a Gaussian for each code (Chen et al. 2016, eq. 5).

    Its standard deviation is "one", 1/2 sum_k mean_b e_bk^2 with the errors e; or "fitted", the likeliest for the
    batch: 1/2 sum_k log(mean_b e_bk^2 + 0.001), where the constant keeps a perfect estimate finite. The sum of squares
    stays the same when the codes of two factors turn into each other. The sum of logarithms is least where the errors
    are least alike: where each code has one factor to itself, and factors differ in how exactly they can be seen.
    """
    error = (codes - predicted).square().mean(0)
    of_code = 0.5 * (error if deviation == "one" else (parallel.mean(error) + 1e-3).log())
    return (of_code if weight is None else weight * of_code).sum()


def r1_penalty(
    logits: Tensor,  # [B] of D on real images, with a graph
    images: Tensor,  # [B, C, H, W] that require a gradient
) -> Tensor:
    """Mean over the batch of |grad_x D(x)|^2 / 2 on real images (Mescheder et al. 2018, eq. 9)."""
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return 0.5 * gradient.square().sum((1, 2, 3)).mean()
