"""Metrics of images: the dSprites inception score, PSNR and SSIM."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..data import load
from ..errors import InputError
from .arrays import Scores, tensor


def inception(probabilities: Any) -> Scores:  # [N, C], rows summing to 1
    """Compute the inception score exp(mean KL(p(y|x) || p(y))), from 1 to C (Salimans et al. 2016, section 4).

    `probabilities` are those of the classes of each generated image. InfoGAN-CR takes a classifier of dSprites' shapes
    in place of Inception. Returns score; log_std, the standard deviation of that KL; confidence, the mean of
    max_y p(y|x); modes [C], the share of images of each class; mode_kl, its KL divergence from uniform.
    """
    p = tensor(probabilities, "probabilities", "N C").double()
    kl = (p * (p.clamp(min=1e-12).log() - p.mean(0).clamp(min=1e-12).log())).sum(1)
    modes = p.argmax(1).bincount(minlength=p.shape[1]) / len(p)
    mode_kl = float((modes * (modes.clamp(min=1e-12) * len(modes)).log()).sum())
    scores = {"score": float(kl.mean().exp()), "log_std": float(kl.std(correction=0)), "mode_kl": mode_kl}
    return scores | {"confidence": float(p.amax(1).mean()), "modes": modes.numpy(force=True)}


@cache
def shape_classifier() -> tuple[Callable[[Tensor], Tensor], float]:
    """Return a network, fitted to dSprites, that gives the shapes' probabilities [N, 3] of images, and its accuracy."""
    from sklearn.neural_network import MLPClassifier

    dataset, generator = load("dsprites"), torch.Generator().manual_seed(0)
    index = torch.randint(dataset.num_images, (12_000,), generator=generator, device="cpu")
    x, y = _centred(dataset.images(index)), dataset.factors(index)[:, dataset.factor_names.index("shape")]
    network = MLPClassifier(64, tol=1e-3, random_state=0).fit(x[2_000:], y[2_000:])
    accuracy = float(network.score(x[:2_000], y[:2_000]))
    return lambda images: torch.from_numpy(network.predict_proba(_centred(images.cpu()))), accuracy


def _centred(x: Tensor) -> Tensor:  # [N, 1, 64, 64] -> [N, 32 * 32]
    """Cut out the pixels around the centre of mass, so that the classifier need not learn every position."""
    mass = x[:, 0] + 1e-6  # an empty image has its centre in the middle
    axis, window = torch.arange(64, dtype=x.dtype, device="cpu"), torch.arange(32, device="cpu")
    row = (mass.sum(2) @ axis / mass.sum((1, 2))).round().long()[:, None, None]
    column = (mass.sum(1) @ axis / mass.sum((1, 2))).round().long()[:, None, None]
    image = torch.arange(len(x), device="cpu")[:, None, None]
    padded = functional.pad(x[:, 0], (16, 16, 16, 16))
    return padded[image, row + window[:, None], column + window].flatten(1)


def reconstruction(images: Any, rebuilt: Any) -> Scores:  # [N, C, H, W] in [0, 1] both
    """Compute the mean PSNR and SSIM of reconstructed images.

    PSNR = 10 log10(1 / MSE) in decibels; an exact copy counts 100 dB. SSIM in [-1, 1] (Wang et al. 2004, eq. 13) has
    a Gaussian window 11 x 11 of standard deviation 1.5 inside the image, K1 = 0.01, K2 = 0.03. Returns score (the
    PSNR), psnr, ssim. Raises InputError for images of different shapes or smaller than 11 x 11.
    """
    x, y = tensor(images, "images", "N C H W").float(), tensor(rebuilt, "rebuilt", "N C H W").float()
    if x.shape != y.shape or min(x.shape[2:]) < 11:
        raise InputError(f"images are {list(x.shape)}, rebuilt {list(y.shape)}; expected the same, 11 x 11 or more")
    error = (x - y).square().mean((1, 2, 3)).clamp(min=1e-10)
    psnr = float((-10 * error.log10()).double().mean())
    ssim = float(torch.cat([_ssim(a, b) for a, b in zip(x.split(256), y.split(256))]).double().mean())
    return {"score": psnr, "psnr": psnr, "ssim": ssim}


def _ssim(x: Tensor, y: Tensor) -> Tensor:  # [n, C, H, W] -> [n]
    n, _, height, width = x.shape
    offsets = torch.arange(-5, 6, dtype=x.dtype, device=x.device)
    window = torch.softmax(-offsets.square() / (2 * 1.5**2), 0)
    stacked = torch.cat([x, y, x * x, y * y, x * y]).reshape(-1, 1, height, width)
    blurred = functional.conv2d(functional.conv2d(stacked, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))
    mx, my, xx, yy, xy = blurred.view(5, n, -1)
    c1, c2 = 0.01**2, 0.03**2
    vx, vy, cov = xx - mx * mx, yy - my * my, xy - mx * my
    ratio = (2 * mx * my + c1) * (2 * cov + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))
    return ratio.mean(1)
