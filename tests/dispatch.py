"""Which operations a call makes: a CUDA graph can hold none that brings a value or a size to the host."""

from collections import Counter
from collections.abc import Callable

from torch.utils._python_dispatch import TorchDispatchMode

READ_BACK = {"_local_scalar_dense", "equal", "is_nonzero", "masked_select", "nonzero", "unique_dim"}


def operations(call: Callable[[], object]) -> Counter[str]:
    """How often `call` makes each operation that does work, in its backward passes too."""
    called: Counter[str] = Counter()

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            name = function.overloadpacket.__name__
            called[name] += not (function.is_view or name in ("empty", "empty_strided", "new_empty", "empty_like"))
            return function(*args, **(kwargs or {}))

    with Record():
        call()
    return called
