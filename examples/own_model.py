"""Score and rank a model that crgan did not train: three seeds of a small VAE in plain PyTorch. Takes about a minute.

python examples/own_model.py [STEPS]
"""

import sys

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy

import crgan


class TinyVAE(nn.Module):
    """All that crgan asks of a model: sample, generate and encode. Images are float [n, C, H, W] in [0, 1]."""

    num_codes, image_shape, prior = 4, (3, 16, 16), "normal"

    def __init__(self):
        super().__init__()
        pixels = 3 * 16 * 16
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(pixels, 256), nn.ReLU(), nn.Linear(256, 8))
        self.decoder = nn.Sequential(nn.Linear(4, 256), nn.ReLU(), nn.Linear(256, pixels), nn.Sigmoid())

    def generate(self, codes: Tensor) -> Tensor:
        return self.decoder(codes).unflatten(1, self.image_shape)

    def sample(self, n: int, seed: int = 0) -> Tensor:
        return self.generate(torch.randn(n, 4, generator=torch.Generator().manual_seed(seed)))

    def encode(self, images: Tensor) -> Tensor:
        return self.encoder(images)[:, :4]


def train(seed: int, data: crgan.data.Dataset, steps: int) -> TinyVAE:
    torch.manual_seed(seed)
    model = TinyVAE()
    optimiser = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(steps):
        x = data[torch.randint(len(data), (64,))]
        mean, log_variance = model.encoder(x).chunk(2, 1)
        codes = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        loss = binary_cross_entropy(model.generate(codes), x, reduction="sum") / len(x)
        loss = loss + 2 * (mean**2 + log_variance.exp() - log_variance - 1).sum(1).mean()  # a BetaVAE with beta = 4
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model


def main(steps: int = 1500, groups: int = 100, scale_samples: int = 5_000) -> None:
    data = crgan.data.load("squares")  # or crgan.data.from_images(your_images, your_factors)
    models = {f"seed {seed}": train(seed, data, steps) for seed in range(3)}
    for name, model in models.items():
        scores = crgan.metrics.evaluate(model, data, ("factor_vae", "mig"), groups=groups, points=scale_samples)
        print(name, {metric: round(result["score"], 3) for metric, result in scores.items()})
    ranking = crgan.rank(models, groups=groups, scale_samples=scale_samples)  # without labels
    print(ranking.table())


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
