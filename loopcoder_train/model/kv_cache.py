"""What decoding keeps of one layer: keys and values of all positions, or of the last few in a ring."""

import torch
from torch import Tensor

from loopcoder_train.model.gated_attention import SharedKV

GROWTH_POSITIONS = 256  # a full buffer grows by this many: the copy of all positions is spread over as many tokens


class KVCache:
    """Keys and values [B, positions, G, D], in buffers that are written in place.

    A ring (`limit` positions) overwrites its oldest position when it is full, so positions are in no order. One query
    that sees all of them needs none: the keys are rotated already.
    """

    def __init__(self, kept: SharedKV, limit: int | None = None):
        """`kept`: the positions so far, [B, n, G, D], oldest first, at most `limit`. Becomes this cache's own."""
        self._key, self._value, self._limit = kept.key, kept.value, limit
        self._positions = kept.key.shape[1]
        self._oldest = 0  # where a full ring is written next

    def append(self, key: Tensor, value: Tensor) -> None:
        """Add one position, [B, 1, G, D]."""
        if self._positions == self._limit:
            slot, self._oldest = self._oldest, (self._oldest + 1) % self._limit
        else:
            slot, self._positions = self._positions, self._positions + 1
            if slot == self._key.shape[1]:
                self._grow()
        self._key[:, slot] = key[:, 0]
        self._value[:, slot] = value[:, 0]

    def view(self) -> SharedKV:
        """All positions, [B, positions, G, D]; no copy."""
        return SharedKV(self._key[:, : self._positions], self._value[:, : self._positions])

    @property
    def used_bytes(self) -> int:
        """Bytes of the positions that are there."""
        return sum(x.nbytes for x in (self.view().key, self.view().value))

    @property
    def allocated_bytes(self) -> int:
        """Bytes of the memory that is held for them: all that the buffers are parts of, and room for more positions."""
        return sum(x.untyped_storage().nbytes() for x in (self._key, self._value))

    def _grow(self) -> None:
        """Move to buffers with room for more positions, a ring's for no more than its limit."""
        more = GROWTH_POSITIONS
        if self._limit is not None:
            more = min(more, self._limit - self._key.shape[1])
        self._key, self._value = (
            torch.cat([x, x.new_empty(len(x), more, *x.shape[2:])], dim=1) for x in (self._key, self._value)
        )
