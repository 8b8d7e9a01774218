"""Adam, and a step of it that touches nothing but its own parameters."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from . import parallel

Optimisers = dict[str, torch.optim.Optimizer]


def adam(parameters: Iterable[nn.Parameter], lr: float, beta1: float, beta2: float) -> torch.optim.Optimizer:
    parameters = list(parameters)
    on_cuda = parameters[0].is_cuda  # there a captured graph holds the step
    return torch.optim.Adam(parameters, lr, (beta1, beta2), fused=True, capturable=on_cuda)


def update(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    """Descends `loss` in the optimiser's parameters alone: no gradient is made for any other network."""
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    loss.backward(inputs=parameters)
    parallel.average(p.grad for p in parameters if p.grad is not None)
    optimiser.step()
    optimiser.zero_grad()
