"""A data set and models whose codes are known: images are their factors, one a pixel."""

from math import prod

import torch

SIZES = (3, 6, 8)


class Grid:
    """4 factors, of which the first never varies."""

    name, factor_names, factor_sizes = "grid", ("one", "shape", "b", "c"), (1, *SIZES)
    num_images, image_shape, made = prod(SIZES), (1, 2, 2), 0

    def factors(self, index):
        return torch.stack(torch.unravel_index(index, self.factor_sizes), -1)

    def index(self, factors):
        return (factors * torch.tensor([prod(SIZES[i:]) for i in range(4)])).sum(-1)

    def images(self, index):
        self.made += len(index)
        return self.factors(index).float().view(-1, 1, 2, 2) / 8


class Bare(Grid):
    """What `evaluate` asks of a data set, and no more."""

    index = property()  # raises AttributeError


class Table(Grid):
    """The same without a grid: some cells hold many images, others none."""

    num_images = 500
    generator = torch.Generator().manual_seed(0)
    rows = torch.randperm(prod(SIZES), generator=generator)[:100][torch.randint(100, (500,), generator=generator)]

    def factors(self, index):
        return super().factors(self.rows[index])

    def index(self, factors):
        raise AssertionError("a table may have no image with these factors")


class Encoder:
    """codes = weight @ factors + bias"""

    image_shape = (1, 2, 2)

    def __init__(self, weight, bias=0.0):
        self.weight, self.bias = torch.tensor(weight, dtype=torch.float32), bias
        self.num_codes = len(weight)

    def encode(self, images):
        return images.flatten(1)[:, 1:] @ self.weight.T + self.bias

    def generate(self, codes):
        factors = (codes - self.bias) @ torch.linalg.pinv(self.weight).T
        return torch.nn.functional.pad(factors, (1, 0)).view(-1, 1, 2, 2)

    def sample(self, n, seed):
        return self.generate(torch.rand(n, self.num_codes, generator=torch.Generator().manual_seed(seed)))
