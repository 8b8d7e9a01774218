"""What tests of several ops share: how exact a kernel is, and which operations a call makes."""

from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# A CUDA graph can hold no operation that brings a value or a size to the host.
READ_BACK = {"_local_scalar_dense", "equal", "is_nonzero", "masked_select", "nonzero", "unique_dim"}


def recorded(call, *args):
    """What a call returns, and how often it makes each operation that does work, in its backward passes too."""
    called: Counter[str] = Counter()

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            name = function.overloadpacket.__name__
            called[name] += not (function.is_view or name in ("empty", "empty_strided", "new_empty", "empty_like"))
            return function(*args, **(kwargs or {}))

    with Record():
        return call(*args), called


def assert_as_exact(kernel, reference, truth, name, rounding=4, atol=2.0**-24):  # float16 has no smaller step
    """|truth - kernel| <= |truth - reference| + rounding of the result and of sums + atol, element by element.

    `truth` is the reference in float64, `reference` the same in the kernel's types, `rounding` counts float32 epsilons.
    """
    assert (kernel.shape, kernel.dtype, kernel.device) == (reference.shape, reference.dtype, reference.device)
    eps = torch.finfo(kernel.dtype).eps
    kernel, reference, truth = (t.detach().double().cpu().flatten() for t in (kernel, reference, truth))
    if not len(truth):
        return
    tolerance = eps * truth.abs() + rounding * 2.0**-23 * truth.abs().max() + atol
    excess = (kernel - truth).abs() - (reference - truth).abs() - tolerance
    i = excess.argmax()
    worst = f"{name}[{i}]: kernel {kernel[i]:.9g}, reference {reference[i]:.9g}, truth {truth[i]:.9g}"
    assert excess[i] <= 0, worst
