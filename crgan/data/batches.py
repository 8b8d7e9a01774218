"""The real images of a training step."""

from functools import partial

import torch
from torch import Tensor

from .. import ops
from .dataset import Dataset


class RealImages:
    """Draw the real images of each step, `size` of them, by seed and step.

    Rendered ones are made on the device within the step, stored ones read by the host before it (`fetch`) into memory
    that a captured CUDA graph knows.
    """

    def __init__(self, dataset: Dataset, size: int, seed: int, device: torch.device):
        self.dataset, self.buffer = dataset, None
        self.draw = partial(ops.random_index, size, dataset.num_images, seed)
        if dataset.read is not None:
            first = dataset.stored(torch.zeros(1, dtype=torch.int64, device="cpu"))
            self.buffer = torch.empty((size, *dataset.image_shape), dtype=first.dtype, device=device)

    def fetch(self, step: int) -> None:
        """Read the stored images of step `step`, counted from 0."""
        if self.buffer is not None:
            images = self.dataset.stored(self.draw(step, device="cpu"))
            self.buffer.copy_(images.contiguous().pin_memory() if self.buffer.is_cuda else images, non_blocking=True)

    def images(self, done: Tensor) -> Tensor:  # [B, C, H, W] float32 in [0, 1]
        """Return the images of the step whose number is in the 0-d int64 tensor `done`."""
        if self.buffer is None:
            return self.dataset.images(self.draw(done, device=done.device))
        return self.dataset.to_float(self.buffer)
