"""Which documents are held out: those with the lowest hashes of (seed, normalised content), group by group.

The journey: a task of `clean` remembers the hashes and sizes of its documents, group by group, and keeps the lowest
ones, which alone can be held out (`lowest`). When all tasks are done (`threshold`), documents are taken in the order of
their hashes until they are `fraction` of the group's bytes and `min_documents` of its documents, but never more than a
tenth of either. So a copy that differs in a version number is always on the same side, neither the order of the sources
nor the number of tasks matters, and a small group still has something to evaluate. The files of a repository that is
packed as a whole have one hash, so all of them are on one side.
"""

from dataclasses import dataclass

import numpy as np
import xxhash

MAX_SHARE = 0.1
# A task keeps this many times what it would hold out if every task had the same documents.
_MARGIN = 3


@dataclass(slots=True)
class LowHashes:
    """hashes [N] uint64, sorted, and sizes [N] int64 in bytes of a task's documents below `bound`; none above it."""

    hashes: np.ndarray
    sizes: np.ndarray
    bound: int


def split_hash(digest: int, seed: int) -> int:
    """64 bits from a document's normalised hash and the seed of the split."""
    return xxhash.xxh3_64_intdigest(f"{seed}/{digest:032x}".encode())


def lowest(hashes: np.ndarray, sizes: np.ndarray, fraction: float, min_documents: int) -> LowHashes:
    """The documents of a task that may be held out: three times what its share would need."""
    order = np.argsort(hashes, kind="stable")
    hashes, sizes = hashes[order], sizes[order]
    enough_bytes = int(np.searchsorted(np.cumsum(sizes), _MARGIN * fraction * sizes.sum()))
    keep = max(_MARGIN * min_documents, enough_bytes + 1)
    if keep >= len(hashes):
        return LowHashes(hashes, sizes, 1 << 64)
    return LowHashes(hashes[:keep], sizes[:keep], int(hashes[keep]))


def threshold(
    parts: list[LowHashes], documents: int, num_bytes: int, fraction: float, min_documents: int
) -> tuple[int, bool]:
    """(bound below which documents are held out, whether that is less than asked for because the parts end there).

    documents, num_bytes: of the whole group. The bound is 0 when none can be held out.
    """
    end = min(part.bound for part in parts)
    hashes = np.concatenate([part.hashes for part in parts])
    sizes = np.concatenate([part.sizes for part in parts])
    # Files of a packed repository have one hash: they are taken or left together.
    values, places, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    sizes_of = np.bincount(places, weights=sizes, minlength=len(values))
    most_documents, most_bytes = documents * MAX_SHARE, num_bytes * MAX_SHARE
    bound = taken_documents = taken_bytes = 0
    for value, count, size in zip(values.tolist(), counts.tolist(), sizes_of.tolist(), strict=True):
        if taken_documents >= min_documents and taken_bytes >= fraction * num_bytes:
            return bound, False
        taken_documents, taken_bytes = taken_documents + count, taken_bytes + size
        if taken_documents > most_documents or taken_bytes > most_bytes:
            return bound, False
        if value >= end:
            return bound, True
        bound = value + 1
    return bound, False
