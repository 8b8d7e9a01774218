"""Data-parallel training: `torchrun --nproc-per-node N -m crgan.train ...`, by gloo on CPUs and nccl on GPUs.

Every process draws the random numbers of the whole batch, which are counter-based, and keeps its rows; gradients,
statistics of batch norm and reported losses are means over all processes. N processes then do what one does with the
same batch, up to rounding. In a single process everything here is the identity.
"""

import os
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def start(device: torch.device) -> torch.device:
    """Joins the processes that torchrun has started; returns the device of this one."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return device


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def leads() -> bool:
    """Whether this is the process that writes files."""
    alone = int(os.environ.get("WORLD_SIZE", 1)) == 1  # some schedulers set RANK for processes of their own
    return alone or int(os.environ["RANK"]) == 0


def wait() -> None:
    if world() > 1:
        dist.barrier()


def finish() -> None:
    """Waits for all processes and parts from them: one that just ends may abort."""
    if world() > 1:
        dist.barrier()
        dist.destroy_process_group()


def largest(value: int, device: torch.device) -> int:
    if world() == 1:
        return value
    held = torch.tensor(value, device=device)
    dist.all_reduce(held, dist.ReduceOp.MAX)
    return int(held)


def shard(x: Tensor) -> Tensor:
    """This process's rows of [B, ...]."""
    return x.chunk(world())[dist.get_rank()] if world() > 1 else x


class _Mean(torch.autograd.Function):
    """The mean over all processes. Its gradient is the mean of theirs: what each does with the mean counts alike."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.contiguous().clone()
        dist.all_reduce(total)
        return total / world()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return _Mean.apply(gradient)


def mean(x: Tensor) -> Tensor:
    """The mean over all processes, through which gradients flow, twice if need be."""
    return _Mean.apply(x) if world() > 1 else x


@torch.no_grad()
def average(tensors: Iterable[Tensor]) -> None:
    """Each tensor becomes its mean over all processes, in one exchange."""
    if world() > 1:
        held = list(tensors)
        flat = torch.cat([x.flatten() for x in held])
        dist.all_reduce(flat)
        for x, shared in zip(held, (flat / world()).split([x.numel() for x in held])):
            x.copy_(shared.view(x.shape))


class _Together(nn.modules.batchnorm._BatchNorm):
    """Batch norm of [B, C, ...] over the rows of all processes."""

    def forward(self, input: Tensor) -> Tensor:
        if world() == 1 or not self.training:
            return super().forward(input)
        dims, shape = [0, *range(2, input.dim())], [1, -1, *[1] * (input.dim() - 2)]
        count = world() * input.numel() // input.shape[1]
        average = mean(input.float().mean(dims))
        centred = input - average.view(shape)
        variance = mean(centred.float().square().mean(dims))
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(average, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale.view(shape) + self.bias.view(shape)).to(input.dtype)


class BatchNorm1d(_Together, nn.BatchNorm1d):
    pass


class BatchNorm2d(_Together, nn.BatchNorm2d):
    pass
