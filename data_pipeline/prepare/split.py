"""Which documents are held out: those with the lowest hashes of (seed, normalised content), source by source.

The journey: while a source is collected its documents' hashes and sizes are remembered (16 bytes each); when it is
complete, documents are taken in the order of their hashes until they are `fraction` of its bytes and `min_documents`
of its documents, but never more than a tenth of either. So a copy that differs in a version number is always on the
same side, the order of the sources does not matter, and a small source still has something to evaluate.
"""

from array import array

import xxhash

_MAX_SHARE = 0.1


def split_hash(digest: int, seed: int) -> int:
    """64 bits from a document's normalised hash and the seed of the split."""
    return xxhash.xxh3_64_intdigest(f"{seed}/{digest:032x}".encode())


class HeldoutRule:
    """Collects the documents of one source (`add`); a document is held out if its hash is below `threshold()`."""

    def __init__(self, fraction: float, min_documents: int) -> None:
        self._fraction, self._min_documents = fraction, min_documents
        self._hashes, self._sizes = array("Q"), array("Q")

    @property
    def documents(self) -> int:
        return len(self._hashes)

    def add(self, value: int, num_bytes: int) -> None:
        """One document: its `split_hash` and size."""
        self._hashes.append(value)
        self._sizes.append(num_bytes)

    def threshold(self) -> int:
        """The bound for the documents that were added; 0 when none can be held out."""
        total_bytes = sum(self._sizes)
        most_documents, most_bytes = self.documents * _MAX_SHARE, total_bytes * _MAX_SHARE
        bound = num_bytes = 0
        for documents, (value, size) in enumerate(sorted(zip(self._hashes, self._sizes, strict=True))):
            enough = documents >= self._min_documents and num_bytes >= self._fraction * total_bytes
            num_bytes += size
            if enough or documents + 1 > most_documents or num_bytes > most_bytes:
                break
            bound = value + 1
        return bound
