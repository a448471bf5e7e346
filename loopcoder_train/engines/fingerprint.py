"""A number that tells whether tensors on different processes are equal, bit for bit.

    fingerprint = sum over words w_i of w_i * m_i, modulo 2^64, with a fixed odd multiplier m_i for every position

Integer arithmetic, so the order of the sum does not matter and every device gives the same number. One changed word
always changes it (an odd multiplier loses no bit); what several changes hide from it happens once in 2^60 or so. It
protects against broken machines, not against people.

Replicas hold tensors of one shape, so positions inside them will do. Where layouts cut tensors differently, positions
are those of the whole tensor (:func:`box_fingerprint`), and the parts' numbers add up to the whole's.
"""

import functools
from collections.abc import Iterable

import torch
from torch import Tensor

from loopcoder_train.model.state import TensorShard

_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # bytes per element -> integers of that size
_CHUNK = 1 << 20  # words at a time: the temporary copies have 8 bytes for each
_CHAIN = 0x5851F42D4C957F2D  # odd: ties the chunks, and the tensors, to their places


@torch.no_grad()
def fingerprint(tensor: Tensor) -> Tensor:
    """The fingerprint of one tensor's bits: int64 [], on its device."""
    words = tensor.detach().reshape(-1).view(_WORDS[tensor.element_size()])
    multipliers = _multipliers(tensor.device)
    result = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for chunk in words.split(_CHUNK):
        result = result * _CHAIN + (chunk.long() * multipliers[: len(chunk)]).sum()
    return result


def combined(fingerprints: Iterable[Tensor]) -> Tensor:
    """One number for several fingerprints in their order: int64 []."""
    return functools.reduce(lambda all_before, one: all_before * _CHAIN + one, fingerprints)


@functools.cache
def _multipliers(device: torch.device) -> Tensor:
    """Odd int64 [_CHUNK] without a pattern: neighbours that trade places must not cancel out."""
    return _multipliers_of(torch.arange(_CHUNK, dtype=torch.int64)).to(device)


def _multipliers_of(positions: Tensor) -> Tensor:
    numbers = (positions + 1) * -0x61C8864680B583EB  # the golden ratio's 64 bits
    numbers = (numbers ^ (numbers >> 29)) * -0x40A7B892E31B1A47
    return (numbers ^ (numbers >> 32)) | 1


@torch.no_grad()
def box_fingerprint(shard: TensorShard) -> Tensor:
    """This box's part of its whole tensor's fingerprint: int64 [], on the box's device.

    The sum over boxes that cover a tensor once is the same for every way of cutting it.
    """
    result = torch.zeros((), dtype=torch.int64, device=shard.data.device)
    if shard.data.numel() == 0:
        return result
    rows = max(1, _CHUNK * len(shard.data) // shard.data.numel())
    for first in range(0, len(shard.data), rows):
        part = shard.data[first : first + rows]
        words = part.contiguous().view(_WORDS[part.element_size()])
        positions = _positions(part.shape, (shard.offsets[0] + first, *shard.offsets[1:]), shard.global_shape)
        result += (words.long() * _multipliers_of(positions.to(part.device))).sum()
    return result


def _positions(shape: tuple[int, ...], offsets: tuple[int, ...], global_shape: tuple[int, ...]) -> Tensor:
    """Index in the flattened whole tensor of every element of a box: int64 of the box's shape."""
    positions = torch.zeros((), dtype=torch.int64)
    for length, offset, size in zip(shape, offsets, global_shape, strict=True):
        positions = positions[..., None] * size + torch.arange(offset, offset + length)
    return positions
