"""The real images of a training step."""

import torch
from torch import Tensor

from .. import ops
from .dataset import Dataset


class RealImages:
    """The real images of each step, `size` of them, drawn by seed and step.

    Rendered ones are drawn within the step, on the device. Stored ones are read by the host before the step (`fetch`),
    into memory that a captured CUDA graph knows.
    """

    def __init__(self, dataset: Dataset, size: int, seed: int, device: torch.device):
        self.dataset, self.size, self.seed, self.buffer = dataset, size, seed, None
        if dataset.read is not None:
            first = dataset.stored(torch.zeros(1, dtype=torch.int64, device="cpu"))
            self.buffer = torch.empty((size, *dataset.image_shape), dtype=first.dtype, device=device)

    def _index(self, step: Tensor | int, device: torch.device | str) -> Tensor:
        return ops.random_index(self.size, self.dataset.num_images, self.seed, step, device=device)

    def fetch(self, step: int) -> None:
        """Read the stored images of step `step`, counted from 0."""
        if self.buffer is not None:
            images = self.dataset.stored(self._index(step, "cpu"))
            self.buffer.copy_(images.contiguous().pin_memory() if self.buffer.is_cuda else images, non_blocking=True)

    def images(self, done: Tensor) -> Tensor:  # [B, C, H, W] float32 in [0, 1]
        """Return the images of the step whose number is in the 0-d int64 tensor `done`."""
        if self.buffer is None:
            return self.dataset.images(self._index(done, done.device))
        return self.dataset.to_float(self.buffer)
