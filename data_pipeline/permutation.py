"""Which block of a source comes next: a keyed permutation of [0, n), in closed form and without a table.

The journey of an index: it is split into two halves of `w` bits (2^(2w) >= n); a few Feistel rounds mix one half
into the other through a murmur-type finaliser with a 64-bit key per round; if the result is >= n it goes round again
(cycle walking: the Feistel network permutes [0, 4^w), so the walk ends and stays a bijection on [0, n)). Fewer than 4
walks are expected. Keys come from (seed, name of the source, epoch): another epoch is another order, and adding a
source re-deals no other.
"""

import functools
import hashlib
import struct

import numpy as np

from data_pipeline.errors import DataError

_ROUNDS = 4
# A small domain has too few distinct 4-round networks: with 2 x 4 bits the bias is visible; with 2 x 10 bits indices
# that lie 2^10 apart are correlated by up to 0.8%, over all of 10^6. From 2 x 11 bits on nothing was found. To mix
# more costs little.
_ROUNDS_SMALL = 8
_SMALL_HALF_BITS = 12
_MASK64 = (1 << 64) - 1
_C1 = 0xFF51AFD7ED558CCD
_C2 = 0xC4CEB9FE1A85EC53


class Permutation:
    """A bijection of [0, size), 1 <= size <= 2^63, chosen by `key` (64 bytes; see `permutation_key`)."""

    def __init__(self, size: int, key: bytes) -> None:
        if not 1 <= size <= 1 << 63:
            raise DataError(f"permutation of {size} blocks: the size must be in 1..2^63")
        self.size = size
        self._half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
        rounds = _ROUNDS_SMALL if self._half_bits <= _SMALL_HALF_BITS else _ROUNDS
        self._keys = struct.unpack("<8Q", key)[:rounds]

    def __call__(self, index: int) -> int:
        """The image of one index in [0, size)."""
        assert 0 <= index < self.size
        bits, size = self._half_bits, self.size
        mask = (1 << bits) - 1
        value = index
        while True:
            left, right = value >> bits, value & mask
            for key in self._keys:
                x = right ^ key
                x = ((x ^ (x >> 33)) * _C1) & _MASK64
                x = ((x ^ (x >> 33)) * _C2) & _MASK64
                left, right = right, left ^ ((x ^ (x >> 33)) & mask)
            value = (left << bits) | right
            if value < size:
                return value

    def many(self, indices: np.ndarray) -> np.ndarray:
        """The images of indices [N] as uint64 [N]; equal to calling the permutation on each."""
        values = self._walk_once(np.asarray(indices, dtype=np.uint64))
        outside = np.flatnonzero(values >= np.uint64(self.size))
        while outside.size:
            values[outside] = self._walk_once(values[outside])
            outside = outside[values[outside] >= np.uint64(self.size)]
        return values

    def _walk_once(self, values: np.ndarray) -> np.ndarray:
        bits = np.uint64(self._half_bits)
        mask = np.uint64((1 << self._half_bits) - 1)
        shift = np.uint64(33)
        left, right = values >> bits, values & mask
        for key in self._keys:
            x = right ^ np.uint64(key)
            x = (x ^ (x >> shift)) * np.uint64(_C1)  # uint64 products wrap modulo 2^64, as meant
            x = (x ^ (x >> shift)) * np.uint64(_C2)
            left, right = right, left ^ ((x ^ (x >> shift)) & mask)
        return (left << bits) | right


def permutation_key(seed: int, name: str, epoch: int) -> bytes:
    """64 bytes that depend on every bit of (seed, name, epoch)."""
    return hashlib.blake2b(f"{seed}/{epoch}/{name}".encode(), digest_size=64).digest()


@functools.lru_cache(maxsize=4096)
def block_permutation(size: int, seed: int, name: str, epoch: int) -> Permutation:
    """The order of the `size` blocks of a source in one epoch."""
    return Permutation(size, permutation_key(seed, name, epoch))
