"""Counts the numbers that a forward pass keeps: tensors made in it that are still alive after it."""

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class KeptMemory(TorchDispatchMode):
    """Bytes by storage, of storages that were not there before (`known`: the weights)."""

    def __init__(self, known: list[torch.Tensor]):
        super().__init__()
        self._known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in self._known:
                storage = tensor.untyped_storage()
                self._made[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        return result

    def alive_bytes(self) -> int:
        """Bytes of what was made and is still there."""
        return sum(size for reference, size in self._made.values() if not reference.expired())
