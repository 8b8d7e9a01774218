"""The terms of the objective, and a step down them.

    min_{G,Q,H} max_D  L_adv(G, D) - lambda I(c; Q(G(c, z))) - alpha L_cr(G, H)        (Lin et al. 2020, section 3)

Each term is a pure function that returns a 0-d tensor. The contrastive term is `crgan.contrastive_loss`.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

Optimisers = dict[str, torch.optim.Optimizer]


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:  # [B] logits of D on real and on generated images
    """Return the logistic loss -log D(x) - log(1 - D(G(c, z))) (Goodfellow et al. 2014, eq. 1); chance is 2 ln 2."""
    return softplus(-real).mean() + softplus(fake).mean()


def generator_loss(fake: Tensor) -> Tensor:  # [B] logits of D on generated images
    """Return the non-saturating logistic loss -log D(G(c, z)) (Goodfellow et al. 2014, section 3); chance is ln 2."""
    return softplus(-fake).mean()


def info_loss(
    codes: Tensor,  # [B, K] codes in [-1, 1] that made the images
    predicted: Tensor,  # [B, K] Q's estimate of them: the mean of its Gaussian
    q_std: str = "one",
    weight: Tensor | None = None,  # [K], of each code; None: all 1
) -> Tensor:
    """Return -log q(c | x) without its constant, summed over the codes (Chen et al. 2016, eq. 5).

    With `q_std="one"` every code has standard deviation 1: 1/2 sum_k mean_b e_bk^2 for the errors e. With "fitted" it
    has the maximum-likelihood value of the batch: 1/2 sum_k log(mean_b e_bk^2 + 0.001), where the constant keeps a
    perfect estimate finite. A rotation of two codes leaves the sum of squares as it is, but increases the sum of
    logarithms unless their errors are alike.
    """
    error = (codes - predicted).square().mean(0)
    per_code = 0.5 * (error if q_std == "one" else (error + 1e-3).log())
    return (per_code if weight is None else weight * per_code).sum()


def r1_penalty(logits: Tensor, images: Tensor) -> Tensor:  # [B] of D; real images [B, C, H, W] that require a gradient
    """Return the mean over the batch of |grad_x D(x)|^2 / 2 on real images (Mescheder et al. 2018, eq. 9)."""
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return 0.5 * gradient.square().sum((1, 2, 3)).mean()


def adam(parameters: Iterable[nn.Parameter], lr: float, beta1: float, beta2: float) -> torch.optim.Optimizer:
    """Return a fused Adam, whose step a CUDA graph can capture."""
    parameters = list(parameters)
    return torch.optim.Adam(parameters, lr, (beta1, beta2), fused=True, capturable=parameters[0].is_cuda)


def update(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    """Descend `loss` in the optimiser's parameters. No other network receives a gradient."""
    loss.backward(inputs=[p for group in optimiser.param_groups for p in group["params"]])
    optimiser.step()
    optimiser.zero_grad()
