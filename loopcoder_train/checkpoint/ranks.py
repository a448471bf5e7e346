"""The processes that save or load together, and how they tell each other what happened."""

from typing import Any

import torch.distributed as dist


class Ranks:
    """One process's view of the group. Every member calls the same methods in the same order.

    Only `all_gather_object` is used, on any backend, so a later asynchronous save can bring a group of its own and
    never meet the training step's collectives.
    """

    def __init__(self, rank: int, size: int, group: dist.ProcessGroup | None = None) -> None:
        self.rank = rank
        self.size = size
        self._group = group

    @classmethod
    def current(cls) -> "Ranks":
        """All processes of the job, or this process alone where torch.distributed is not running."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls.alone()

    @classmethod
    def alone(cls) -> "Ranks":
        """This process only, whatever torch.distributed says; nothing is communicated."""
        return cls(0, 1)

    def gather(self, value: Any) -> list[Any]:
        """Everybody's `value`, in rank order, on every rank. Blocks until all ranks have called it."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self._group)
        return values
