"""The processes that save or load together, and how they tell each other what happened."""

from datetime import timedelta
from typing import Any

import torch.distributed as dist

TIMEOUT = timedelta(hours=3)  # of one file of one rank: a collective that waits longer ends the process
_groups: dict[dist.ProcessGroup, dist.ProcessGroup] = {}


def _patient_group() -> dist.ProcessGroup:
    """The gloo group beside the job's default group, made once for each default group."""
    default = dist.group.WORLD
    if default not in _groups:
        _groups.clear()  # of a job that ended in this process before
        _groups[default] = _new_group()
    return _groups[default]


def _new_group() -> dist.ProcessGroup:
    return dist.new_group(backend="gloo", timeout=TIMEOUT)


class Ranks:
    """One process's view of the group. Every member calls the same methods in the same order.

    Only `all_gather_object` is used, on any backend, so an asynchronous save brings a group of its own and never meets
    the training step's collectives.
    """

    def __init__(self, rank: int, size: int, group: dist.ProcessGroup | None = None) -> None:
        self.rank = rank
        self.size = size
        self._group = group

    @classmethod
    def current(cls) -> "Ranks":
        """All processes of the job, or this process alone where torch.distributed is not running.

        They talk over a gloo group of their own, made by the first call: one rank may write for many minutes while the
        others wait, which the training group's time-out takes for a hang.
        """
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size(), _patient_group())
        return cls.alone()

    @classmethod
    def for_a_thread(cls) -> "Ranks":
        """Like `current`, with a group that nobody else talks over: for a thread that saves while others train.

        Collective, and for the main thread: groups are made in the same order on every rank.
        """
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size(), _new_group())
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
