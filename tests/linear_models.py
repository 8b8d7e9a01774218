"""Models whose disentanglement is known: the image is a matrix times the codes, and the encoder another matrix."""

import torch
from torch import Tensor, nn


class Linear:
    """image = mix @ codes as [n, 1, 1, P]; encode = unmix @ image, the inverse unless given."""

    prior = "uniform"

    def __init__(self, mix: Tensor, unmix: Tensor | None = None, pixels: int | None = None):
        self.num_codes = mix.shape[1]
        self.mix = torch.zeros(pixels or len(mix), self.num_codes)
        self.mix[: len(mix)] = mix
        self.unmix = torch.linalg.pinv(self.mix) if unmix is None else unmix
        self.image_shape = (1, 1, len(self.mix))

    def generate(self, codes: Tensor) -> Tensor:
        return (codes @ self.mix.T)[:, None, None]

    def sample(self, n: int, seed: int) -> Tensor:
        draw = torch.Generator().manual_seed(seed)
        return self.generate(torch.rand(n, self.num_codes, generator=draw, dtype=torch.float32) * 2 - 1)

    def encode(self, images: Tensor) -> Tensor:
        return images[:, 0, 0] @ self.unmix.T


def rotation(k: int, seed: int) -> Tensor:
    return torch.linalg.qr(torch.randn(k, k, generator=torch.Generator().manual_seed(seed)))[0]


class Rotation(nn.Module):
    """An orthogonal matrix as weights, times codes and noise; encode is its transpose, with a batch norm."""

    prior = "uniform"

    def __init__(self, seed: int, num_codes: int = 3, num_noise: int = 0, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.num_codes, self.num_noise = num_codes, num_noise
        self.mix = nn.Parameter(rotation(num_codes + num_noise, seed))
        self.norm = nn.BatchNorm1d(num_codes)
        self.to(dtype)

    def generate(self, codes: Tensor, noise: Tensor | None = None) -> Tensor:
        noise = codes[:, :0] if noise is None else noise
        return (torch.cat([codes, noise], 1) @ self.mix.T)[:, None, None]

    def sample(self, n: int, seed: int) -> Tensor:
        draw = torch.rand(n, len(self.mix), generator=torch.Generator().manual_seed(seed)) * 2 - 1
        return self.generate(*draw.to(self.mix).split([self.num_codes, self.num_noise], 1))

    def encode(self, images: Tensor) -> Tensor:
        return self.norm((images[:, 0, 0] @ self.mix)[:, : self.num_codes])


def known_pool(k: int = 5) -> dict[str, Linear]:
    """Good models first, then those that are worse by construction."""
    eye = torch.eye(k)
    half_blind = eye.clone()
    half_blind[0] = 0  # its first code is constant
    return {
        "identity": Linear(eye),
        "permuted": Linear(eye[torch.arange(k).roll(2)]),
        "rescaled": Linear(torch.diag(torch.tensor([-3.0, 1, 0.2, -1, 50])[:k])),
        "constant code": Linear(eye, half_blind),
        "rotated": Linear(rotation(k, 1)),
        "collapsed": Linear(rotation(k, 2), torch.zeros(k, k)),
        "broken": Linear(rotation(k, 3), torch.full((k, k), torch.nan)),
    }
