"""What a step really holds and sends: torch's MemTracker for the peak, and a count of collectives."""

import torch
from torch import distributed
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_CPU = torch.device("cpu")


class _NoModules:
    """Stands for MemTracker's module tracker, whose gradient hooks keep inputs of a pipeline's chunks alive."""

    is_bw = False
    parents: frozenset[str] = frozenset()

    def register_user_hooks(self, *hooks: object) -> None:
        """Nobody is called."""

    def clear_user_hooks(self) -> None:
        """Nothing to clear."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


class PeakMemory(MemTracker):
    """MemTracker that follows storages alone: `peak_bytes` of CPU tensors, not which module is at its peak."""

    def __init__(self, tracked: list[torch.Tensor]):
        super().__init__()
        self._mod_tracker = _NoModules()
        self.track_external(*tracked)
        self.peak_bytes = self._curr_mem_snap[_CPU]["Total"]

    def _update_peak_stats(self, peak_state: object) -> None:
        """MemTracker copies its whole table at every new peak; the sum is enough."""
        self.peak_bytes = max(self.peak_bytes, self._curr_mem_snap[_CPU]["Total"])


class SentBytes(TorchDispatchMode):
    """Bytes that this rank sends, by a ring's count (planning/traffic.py)."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0.0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "c10d":
            self.total += self._sent(str(function).split(".")[1].strip("_"), args)
        return function(*args, **(kwargs or {}))

    @staticmethod
    def _sent(name: str, args: tuple) -> float:
        if name.startswith("send"):
            return _size(args[0])
        if name.startswith(("recv", "barrier", "broadcast")):
            return 0.0  # broadcast: DDP's version check, a few numbers
        ranks = next(group for group in map(_group, args) if group is not None).size()
        ring = (ranks - 1) / ranks
        if name.startswith("allreduce"):
            return 2 * ring * _size(args[0])
        if name.startswith("allgather"):
            return ring * _size(args[0])
        assert name.startswith(("reduce_scatter", "alltoall")), name
        return ring * _size(args[1])


def _size(tensors: object) -> int:
    return sum(t.numel() * t.element_size() for t in tree_leaves(tensors) if isinstance(t, torch.Tensor))


def _group(argument: object) -> distributed.ProcessGroup | None:
    if not isinstance(argument, torch.ScriptObject):
        return None
    try:
        return distributed.ProcessGroup.unbox(argument)
    except RuntimeError:  # a ReduceOp
        return None
