"""How the state of a run is named and cut: boxes of named tensors, whatever the engine and the parallel layout.

A parameter has one name everywhere: its name in the released Hugging Face checkpoint. A rank's part of a tensor is a
box (offsets and lengths in the whole tensor), so what one layout saved any other layout can read.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

MODEL_PREFIX = "model/"  # fp32 weights: model/<parameter name>
FIRST_MOMENT_PREFIX = "adam_first_moment/"
SECOND_MOMENT_PREFIX = "adam_second_moment/"


@dataclass(slots=True)
class TensorShard:
    """A box of the tensor called `name`, backed by live storage.

    `data` is a view: saving reads it, loading copies into it (casting to its dtype). `owner` is true on exactly one
    rank for every element of the whole tensor; only owners are saved, everybody loads.
    """

    name: str
    global_shape: tuple[int, ...]
    offsets: tuple[int, ...]
    data: Tensor
    owner: bool = True

    def __post_init__(self) -> None:
        assert len(self.global_shape) == len(self.offsets) == self.data.dim(), self.name
        for offset, length, size in zip(self.offsets, self.data.shape, self.global_shape, strict=True):
            assert 0 <= offset and offset + length <= size, (self.name, self.offsets, tuple(self.data.shape))


def whole(name: str, data: Tensor, owner: bool = True) -> TensorShard:
    """The shard that is the whole tensor."""
    return TensorShard(name, tuple(data.shape), (0,) * data.dim(), data, owner)


@torch.no_grad()
def fill(shards: Iterable[TensorShard], value_of: Callable[[str, tuple[int, ...]], Tensor]) -> None:
    """Copy `value_of(name, global_shape)` into every shard, making each whole tensor once."""
    by_name: dict[str, list[TensorShard]] = {}
    for shard in shards:
        by_name.setdefault(shard.name, []).append(shard)
    for name, boxes in by_name.items():
        value = value_of(name, boxes[0].global_shape)
        for box in boxes:
            index = tuple(slice(o, o + n) for o, n in zip(box.offsets, box.data.shape, strict=True))
            box.data.copy_(value[index])


def flat_range_boxes(
    local_shape: tuple[int, ...], start: int, stop: int
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...], int, int]]:
    """Cut elements [start, stop) of a flattened tensor into boxes: (offsets, lengths, flat start, flat stop).

    A distributed optimizer owns contiguous ranges of flattened parameters, which need not be whole rows. At most
    ``2 * dims - 1`` boxes come back, in order, covering the range exactly.
    """
    if start >= stop:
        return
    if len(local_shape) <= 1:
        yield (start,) * len(local_shape), (stop - start,) * len(local_shape), start, stop
        return
    row = prod(local_shape[1:])
    first_whole, last_whole = -(-start // row), stop // row
    if first_whole > last_whole:  # inside one row
        yield from _row_part(local_shape, start // row, start, stop)
        return
    if start < first_whole * row:
        yield from _row_part(local_shape, first_whole - 1, start, first_whole * row)
    if first_whole < last_whole:
        offsets = (first_whole,) + (0,) * (len(local_shape) - 1)
        yield offsets, (last_whole - first_whole, *local_shape[1:]), first_whole * row, last_whole * row
    if last_whole * row < stop:
        yield from _row_part(local_shape, last_whole, last_whole * row, stop)


def _row_part(local_shape, index, start, stop):
    base = index * prod(local_shape[1:])
    for offsets, lengths, low, high in flat_range_boxes(local_shape[1:], start - base, stop - base):
        yield (index, *offsets), (1, *lengths), low + base, high + base
