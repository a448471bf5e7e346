"""Which documents are held out: those with the lowest hashes of (seed, normalised content).

The choice is a function of the content alone: neither the order of the sources nor a document that is added later
moves another one across, apart from the floor of `min_documents` per source, which only ever lets documents near the
lowest hash in. The floor takes at most a tenth of a small source.
"""

import heapq

import xxhash

_RANGE = 1 << 64
_MAX_SHARE_OF_FLOOR = 10


def split_hash(digest: int, seed: int) -> int:
    """64 bits from a document's normalised hash and the seed of the split."""
    return xxhash.xxh3_64_intdigest(f"{seed}/{digest:032x}".encode())


class HeldoutRule:
    """Collects the hashes of one source (`add`), then decides for each document (`is_heldout`)."""

    def __init__(self, fraction: float, min_documents: int) -> None:
        self._threshold = int(fraction * _RANGE)
        self._min_documents = min_documents
        self._lowest: list[int] = []  # a max-heap of the `min_documents` lowest hashes, negated
        self.documents = 0

    def add(self, value: int) -> None:
        """Count one document by its `split_hash`."""
        self.documents += 1
        if len(self._lowest) < self._min_documents:
            heapq.heappush(self._lowest, -value)
        elif self._min_documents:
            heapq.heappushpop(self._lowest, -value)

    @property
    def threshold(self) -> int:
        """Documents with a hash below it are held out; final once every document was added."""
        floor = min(self._min_documents, self.documents // _MAX_SHARE_OF_FLOOR)
        if not floor or not self._threshold and not self._min_documents:
            return self._threshold
        lowest = sorted(-value for value in self._lowest)
        return max(self._threshold, lowest[floor - 1] + 1)

    def is_heldout(self, value: int) -> bool:
        """Whether the document with this `split_hash` is held out."""
        return value < self.threshold
