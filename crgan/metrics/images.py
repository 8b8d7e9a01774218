"""Metrics of images: PSNR and SSIM."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import InputError
from .arrays import Scores, tensor


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
