"""The first half of a save: copy what this rank owns out of the live tensors.

Once the snapshot is taken training may change its tensors; the second half (`save.write_snapshot`) needs only the
snapshot. An asynchronous save (`async_save.py`) is these two halves with a thread between them.
"""

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from loopcoder_train.checkpoint.boxes import Box
from loopcoder_train.checkpoint.index import OwnedBox, key_of
from loopcoder_train.checkpoint.tensors import dtype_name
from loopcoder_train.model.state import TensorShard


@dataclass(slots=True)
class Snapshot:
    """This rank's part of a checkpoint, in CPU memory and independent of the live tensors."""

    step: int
    owned: list[OwnedBox]
    tensors: dict[str, Tensor]  # by key in this rank's file, contiguous, on the CPU
    state: dict[str, Any]
    rank_state: dict[str, Any] | None
    seconds: float


class SnapshotBuffers:
    """CPU memory for one snapshot at a time, used again by the next one; pinned where the shards lie on CUDA.

    It stays as large as what the rank owns. Fresh memory costs a page fault per 4 KiB in every save, which takes longer
    than the copy itself, and without pinned memory CUDA copies tensor by tensor through a small buffer of its own.
    """

    def __init__(self) -> None:
        self._tensors: dict[str, Tensor] = {}

    def for_copy_of(self, key: str, data: Tensor) -> Tensor:
        """The tensor that takes the copy of `data`, whose content then is that of the snapshot before."""
        if key not in self._tensors:
            self._tensors[key] = torch.empty(data.shape, dtype=data.dtype, pin_memory=data.is_cuda)
        buffer = self._tensors[key]
        assert (buffer.shape, buffer.dtype) == (data.shape, data.dtype), f"{key}: another box than in the save before"
        return buffer


def take_snapshot(
    step: int,
    shards: list[TensorShard],
    state: dict[str, Any],
    rank_state: dict[str, Any] | None,
    buffers: SnapshotBuffers | None = None,
) -> Snapshot:
    """Copy the owned shards to CPU memory. Not collective.

    `buffers`: where the copies go, over those of the snapshot before; without it, to memory of their own. Raises
    AssertionError where a box is owned twice on this rank, a dtype is not storable, or a state would not come back from
    JSON as it is.
    """
    start = time.perf_counter()
    assert_json(state, "state")
    assert_json(rank_state, "rank_state")
    owned_boxes: list[OwnedBox] = []
    tensors: dict[str, Tensor] = {}
    copies: dict[tuple, Tensor] = {}
    for shard in shards:
        if not shard.owner:
            continue
        box = Box(tuple(shard.offsets), tuple(shard.data.shape))
        owned = OwnedBox(shard.name, tuple(shard.global_shape), dtype_name(shard.data.dtype), box)
        owned_boxes.append(owned)
        if box.volume > 0:
            key = key_of(owned)
            assert key not in tensors, f"{shard.name}: this rank owns the box at {shard.offsets} twice"
            tensors[key] = _cpu_copy(key, shard.data.detach(), copies, buffers)
    for device in {shard.data.device for shard in shards if shard.owner and shard.data.is_cuda}:
        torch.cuda.synchronize(device)  # copies to pinned memory are only queued so far
    return Snapshot(step, owned_boxes, tensors, state, rank_state, time.perf_counter() - start)


def _cpu_copy(key: str, data: Tensor, copies: dict[tuple, Tensor], buffers: SnapshotBuffers | None) -> Tensor:
    """A contiguous copy of exactly the view `data`; views of the same memory share one copy."""
    memory = (data.device, data.data_ptr(), tuple(data.shape), data.stride(), data.dtype)
    if memory not in copies:
        if buffers is None:
            copies[memory] = torch.empty(data.shape, dtype=data.dtype).copy_(data)
        else:
            copies[memory] = buffers.for_copy_of(key, data).copy_(data, non_blocking=True)
    return copies[memory]


def assert_json(value: Any, where: str) -> None:
    """AssertionError unless `value` comes back from JSON equal: no tuples, no tensors, no keys but strings."""
    if type(value) is dict:
        for key, item in value.items():
            assert type(key) is str, f"{where}: key {key!r} is not a string"
            assert_json(item, f"{where}[{key!r}]")
    elif type(value) is list:
        for position, item in enumerate(value):
            assert_json(item, f"{where}[{position}]")
    else:
        assert value is None or type(value) in (str, int, float, bool), f"{where}: {type(value).__name__} is not JSON"
