"""How many bytes of tensors are alive while something is computed, on shapes alone or for real."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, UntypedStorage
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

READ_A_VALUE = torch.ops.aten._local_scalar_dense.default


class LiveBytes(TorchDispatchMode):
    """Context manager: bytes of the storages made inside that are alive now, and of the most at one time.

    With tensors of a FakeTensorMode nothing is computed and no memory is taken, but the same tensors are kept for the
    backward pass. Code that asks such a tensor for its value gets 1.0, or True, as if every check had passed, and for
    an integer 0, which is a place in any list.
    """

    def __init__(self) -> None:
        super().__init__()
        self._seen = WeakIdKeyDictionary()
        self.now, self.peak = 0, 0

    def peak_since(self) -> int:
        """The most since the last call."""
        found, self.peak = self.peak, self.now
        return found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is READ_A_VALUE and isinstance(args[0], FakeTensor):
            return args[0].dtype == torch.bool or (1.0 if args[0].is_floating_point() else 0)
        for storage in _storages((args, kwargs)):  # what was made before is not counted, nor are views of it
            self._seen.setdefault(storage)
        found = func(*args, **(kwargs or {}))
        for storage in _storages(found):
            self._see(storage)
        return found

    def _see(self, storage: UntypedStorage) -> None:
        if storage in self._seen:
            return
        size = storage.nbytes()
        self._seen.setdefault(storage)
        weakref.finalize(storage, self._gone, size)
        self.now += size
        self.peak = max(self.peak, self.now)

    def _gone(self, size: int) -> None:
        self.now -= size


def _storages(values: Any) -> list[UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
