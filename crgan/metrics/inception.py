"""The dSprites inception score: are generated shapes clear, and all three there?"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .arrays import codes_array


def inception(
    probabilities: Any,  # [N, C] class probabilities of generated images, rows summing to 1
) -> dict[str, Any]:
    """Compute the inception score exp(mean KL(p(y|x) || p(y))), from 1 to C (Salimans et al. 2016, section 4).

    InfoGAN-CR takes a classifier of dSprites' shapes in place of Inception. Returns score; log_std, the standard
    deviation of that KL; confidence, the mean of max_y p(y|x); modes [C], the share of images classified as each shape;
    mode_kl, its KL divergence from uniform (0: all alike, log C: one shape only).
    """
    p = codes_array(probabilities, "probabilities", "N C").double()
    kl = (p * (p.clamp(min=1e-12).log() - p.mean(0).clamp(min=1e-12).log())).sum(1)
    modes = p.argmax(1).bincount(minlength=p.shape[1]) / len(p)
    return {
        "score": float(kl.mean().exp()),
        "log_std": float(kl.std(correction=0)),
        "confidence": float(p.amax(1).mean()),
        "mode_kl": float((modes * (modes.clamp(min=1e-12) * len(modes)).log()).sum()),
        "modes": modes.cpu().numpy(),
    }


class ShapeClassifier(nn.Sequential):
    """Map images [N, 1, 64, 64] to probabilities [N, 3] of square, ellipse, heart.

    The network sees the 32 x 32 pixels around the centre of mass, so it need not learn every position and a few hundred
    steps suffice.
    """

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        dtype = torch.float32
        for i, o in ((1, 8), (8, 16), (16, 32)):
            layers += [nn.Conv2d(i, o, 3, 2, 1, bias=False, dtype=dtype), nn.BatchNorm2d(o, dtype=dtype), nn.ReLU()]
        layers += [nn.Flatten(), nn.Linear(512, 64, dtype=dtype), nn.ReLU(), nn.Linear(64, 3, dtype=dtype)]
        super().__init__(*layers)

    def logits(self, x: Tensor) -> Tensor:
        return super().forward(self._centred(x))

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(self.logits(x), 1)

    @staticmethod
    def _centred(x: Tensor) -> Tensor:  # [N, 1, 64, 64] -> [N, 1, 32, 32]
        mass = x[:, 0] + 1e-6  # an empty image has its centre in the middle
        axis = torch.arange(64, device=x.device, dtype=x.dtype)
        row = (mass.sum(2) @ axis / mass.sum((1, 2))).round().long()
        column = (mass.sum(1) @ axis / mass.sum((1, 2))).round().long()
        window = torch.arange(32, device=x.device)
        rows, columns = (row[:, None] + window)[:, :, None], (column[:, None] + window)[:, None, :]
        padded = functional.pad(x, (16, 16, 16, 16))
        return padded[torch.arange(len(x), device=x.device)[:, None, None], 0, rows, columns][:, None]


@cache
def shape_classifier(device: str = "cpu", steps: int = 250) -> tuple[ShapeClassifier, float]:
    """Train the classifier on rendered dSprites, once per process; return it and its accuracy on 10,000 more images."""
    from ..data import load

    dataset = load("dsprites")
    shape = dataset.factor_names.index("shape")
    generator = torch.Generator().manual_seed(0)

    def batch(n: int) -> tuple[Tensor, Tensor]:
        index = torch.randint(dataset.num_images, (n,), generator=generator).to(device)
        return dataset.images(index), dataset.factors(index)[:, shape]

    devices = [] if device == "cpu" else [device]
    with torch.random.fork_rng(devices), torch.inference_mode(False), torch.enable_grad():
        torch.manual_seed(0)
        classifier = ShapeClassifier().to(device)
        optimiser = torch.optim.Adam(classifier.parameters())
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 5e-3, steps)
        for _ in range(steps):
            images, labels = batch(128)
            optimiser.zero_grad()
            functional.cross_entropy(classifier.logits(images), labels).backward()
            optimiser.step()
            schedule.step()
    classifier.eval()
    hits = 0
    for _ in range(10):
        images, labels = batch(1000)
        hits += int((classifier(images).argmax(1) == labels).sum())
    return classifier, hits / 10_000
