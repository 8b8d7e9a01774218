"""Which operations a call makes: a CUDA graph can hold none that brings a value or a size to the host."""

from collections.abc import Callable

from torch.utils._python_dispatch import TorchDispatchMode

READ_BACK = {"_local_scalar_dense", "equal", "is_nonzero", "masked_select", "nonzero", "unique_dim"}


def operations(call: Callable[[], object]) -> set[str]:
    """The names of the operations of `call`, those of its backward passes among them."""
    called = set()

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            called.add(function.overloadpacket.__name__)
            return function(*args, **(kwargs or {}))

    with Record():
        call()
    return called
