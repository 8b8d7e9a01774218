"""The two evaluation protocols."""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from ..errors import InputError


def whole_number(name: str, value: Any, least: int, most: int = 2**53) -> int:
    """Return `value` as an int. Raises InputError where it is not whole, less than `least` or more than `most`."""
    if not isinstance(value, int | float | np.integer | np.floating) or value % 1 != 0 or not least <= value <= most:
        limit = f"of at least {least}" if most == 2**53 else f"from {least} to {most}"
        raise InputError(f"{name} is {value!r}; expected a whole number {limit}")
    return int(value)


@dataclass(frozen=True)
class Protocol:
    """Sizes and variants of one way to score. Scores under different protocols are not comparable."""

    groups: int = 500  # FactorVAE: groups that vote
    heldout_groups: int = 0  # groups to score on; 0: the voting ones
    group_size: int = 100  # images in a group; pairs in a group of pairs
    random_factor: bool = False  # draw each group's fixed factor; else they take turns
    scale_samples: int = 73_728  # images for each code's standard deviation
    ddof: int = 0  # of that standard deviation
    min_std: float = 0.0  # codes with a smaller one do not vote
    pair_groups: int = 0  # BetaVAE: groups to train on; 0: the images of FactorVAE's groups two by two
    heldout_pair_groups: int = 0  # groups to score on
    points: int = 73_728  # MIG, DCI, SAP, Modularity, Explicitness, IRS: images to fit on
    test_points: int = 0  # images to score on; 0: the same
    dci: str = "lasso"  # predictor
    continuous: bool = True  # SAP: factors that are no categories count as numbers
    standardise: bool = False  # Explicitness
    dhsic_points: int = 5_000
    generated: int = 50_000  # images for the inception score
    reconstructed: int = 5_000  # images for PSNR and SSIM

    def __post_init__(self) -> None:
        for field in fields(self):
            if type(field.default) is int:
                least = int(field.name in ("groups", "group_size", "scale_samples", "points"))
                whole = whole_number(field.name, getattr(self, field.name), least)
                object.__setattr__(self, field.name, whole)


PROTOCOLS = {
    "paper": Protocol(),  # the original code of InfoGAN-CR
    "dlib": Protocol(  # disentanglement_lib
        groups=10_000,
        heldout_groups=5_000,
        group_size=64,
        random_factor=True,
        scale_samples=10_000,
        ddof=1,
        min_std=0.05,
        pair_groups=10_000,
        heldout_pair_groups=5_000,
        points=10_000,
        test_points=5_000,
        dci="boosting",
        continuous=False,
        standardise=True,
    ),
}
