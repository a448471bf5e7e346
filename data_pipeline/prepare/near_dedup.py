"""Near duplicates by MinHash and locality-sensitive hashing: nearly the same words in the same order.

The journey: text -> shingles (hashes of 5 words in a row, shingles.py) -> signature: the least value of each of
bands * rows random permutations over the shingles -> one hash per band of `rows` values. Two texts whose sets of
shingles have the Jaccard similarity s agree in one row with probability s, so in at least one band with

    P(s) = 1 - (1 - s^rows)^bands

14 bands of 8 rows, as in datatrove: P = 0.21 at s = 0.6, 0.56 at 0.7, 0.92 at 0.8, 0.9996 at 0.9; the steepest place
is near (1/bands)^(1/rows) = 0.72. More bands find more, more rows find less.

Documents are numbered 0..N-1. Per band, `candidate_edges` links documents of equal hash; `merge_edges` joins edges of
bands into a forest (never more than N - 1 edges), so that bands can be joined one after another; `clusters` gives each
document in a cluster its root, the lowest number in it. A cluster keeps its root and drops the others. Clusters are
transitive: a ~ b and b ~ c put a and c together even where they agree less.

The signatures are those of datatrove's MinhashDedupSignature (XXH64, 64 bits) for the same words. Chance: two different
bands of a corpus of N documents have equal 64-bit hashes N^2 / 2^65 times, 3 pairs per band at N = 10^10.

Memory: `band_hashes` holds the shingles of the texts of one call (8 bytes a word and about 200 bytes a word of the
longest text); `candidate_edges` 32 bytes per document; `merge_edges` and `clusters` 100 bytes per edge.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import xxhash

from data_pipeline.errors import DataError
from data_pipeline.prepare.shingles import shingle_hashes, word_bytes

_PRIME = np.uint64((1 << 61) - 1)
_PRIME_BITS = np.uint64(61)
# The temporary arrays of so many shingles stay in a core's first two caches.
_BLOCK = 4096


@dataclass(kw_only=True, slots=True)
class NearDedupConfig:
    """ngram_words: words per shingle. bands, rows: see the module. seed: of the permutations."""

    ngram_words: int = 5
    bands: int = 14
    rows: int = 8
    seed: int = 1

    def __post_init__(self) -> None:
        for option, low, high in (
            ("ngram_words", 1, 100),
            ("bands", 1, 1000),
            ("rows", 1, 100),
            ("seed", 0, 2**32 - 1),
        ):
            value = getattr(self, option)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise DataError(f"near_dedup.{option}={value!r}: must be a whole number from {low} to {high}")

    @property
    def threshold(self) -> float:
        """Where the S-curve is steepest, about: (1/bands)^(1/rows)."""
        return (1 / self.bands) ** (1 / self.rows)

    def probability(self, similarity: float) -> float:
        """P(s) that two texts of Jaccard similarity s (0..1) become candidates."""
        return 1 - (1 - similarity**self.rows) ** self.bands


class MinHasher:
    """Signatures and band hashes of texts: a pure function of (text, config)."""

    def __init__(self, config: NearDedupConfig) -> None:
        self.config = config
        generator = np.random.RandomState(config.seed)  # its stream is frozen by numpy, so hashes are for ever
        size = config.bands * config.rows
        self._multipliers = generator.randint(1, _PRIME, dtype=np.uint64, size=size)
        self._offsets = generator.randint(0, _PRIME, dtype=np.uint64, size=size)

    def shingles(self, text: str) -> np.ndarray:
        """Shingles [S >= 1] uint64 of a text.

        A text of fewer words than a shingle has has one shingle: itself, but for white space. So it is near only to
        an equal text, and texts without words (symbols, Brainfuck) are not all the same.
        """
        hashes = shingle_hashes(word_bytes(text), self.config.ngram_words)
        if hashes.size:
            return hashes
        return np.array([xxhash.xxh64_intdigest(" ".join(text.split()))], dtype=np.uint64)

    def signatures(self, texts: Sequence[str]) -> np.ndarray:
        """Least of (a * shingle + b mod 2^64) mod (2^61 - 1) over a text's shingles: uint64 [N, bands * rows]."""
        per_text = [self.shingles(text) for text in texts]
        least = np.full((self._multipliers.size, len(texts)), _PRIME, dtype=np.uint64)
        if not per_text:
            return least.T
        starts = np.cumsum([0, *(hashes.size for hashes in per_text)])
        shingles = np.concatenate(per_text)
        for low in range(0, shingles.size, _BLOCK):
            block = shingles[low : low + _BLOCK]
            first = int(np.searchsorted(starts, low, side="right")) - 1
            last = int(np.searchsorted(starts, low + block.size, side="left"))
            self._take_least(block, np.maximum(starts[first:last] - low, 0), least[:, first:last])
        return np.ascontiguousarray(least.T)

    def _take_least(self, block: np.ndarray, starts: np.ndarray, least: np.ndarray) -> None:
        """Lower `least` [permutations, texts] by the values of a block of shingles; its texts begin at `starts`."""
        value, quotient = np.empty_like(block), np.empty_like(block)
        for row, (multiplier, offset) in enumerate(zip(self._multipliers, self._offsets, strict=True)):
            np.multiply(block, multiplier, out=value)
            np.add(value, offset, out=value)
            # x mod (2^61 - 1) without a division: 2^61 is 1, so high bits add to low bits; then at most one prime too
            # much, and where it is none, the difference wraps to something greater.
            np.right_shift(value, _PRIME_BITS, out=quotient)
            np.bitwise_and(value, _PRIME, out=value)
            np.add(value, quotient, out=value)
            np.subtract(value, _PRIME, out=quotient)
            np.minimum(value, quotient, out=value)
            np.minimum(least[row], np.minimum.reduceat(value, starts), out=least[row])

    def band_hashes(self, texts: Sequence[str]) -> np.ndarray:
        """One hash per text and band: uint64 [N, bands]. Independent of which texts share a call."""
        signatures = self.signatures(texts).astype("<u8", copy=False)
        width = self.config.rows * 8
        data = memoryview(signatures.tobytes())
        hashes = (xxhash.xxh3_64_intdigest(data[at : at + width]) for at in range(0, len(data), width))
        count = len(texts) * self.config.bands
        return np.fromiter(hashes, dtype=np.uint64, count=count).reshape(len(texts), self.config.bands)


def candidate_edges(band: np.ndarray) -> np.ndarray:
    """Edges [E, 2] int64 of the documents of equal hash in `band` [N] uint64: each to the next of its hash, sorted."""
    order = np.argsort(band, kind="stable")
    equal = band[order[1:]] == band[order[:-1]]
    edges = np.stack([order[:-1][equal], order[1:][equal]], axis=1).astype(np.int64)
    return edges[np.lexsort((edges[:, 1], edges[:, 0]))]


def clusters(edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(members [M], roots [M]) int64: every document of an edge, ascending, and the lowest number in its cluster.

    edges: int64 [E, 2], in any order and direction.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    members, places = np.unique(edges, return_inverse=True)
    if not members.size:
        return members.astype(np.int64), members.astype(np.int64)
    left, right = places.reshape(-1, 2).T
    links = coo_array((np.ones(left.size, dtype=np.int8), (left, right)), shape=(members.size, members.size))
    _, labels = connected_components(links, directed=False)
    # Members ascend, so the first of a label is its lowest.
    _, firsts = np.unique(labels, return_index=True)
    return members, members[firsts[labels]]


def merge_edges(parts: Iterable[np.ndarray]) -> np.ndarray:
    """A forest [F, 2] int64 (root, member) with the clusters of all parts together; F < N. Sorted by member.

    Parts are taken one after another, so memory is that of the forest and one part.
    """
    forest = np.empty((0, 2), dtype=np.int64)
    for part in parts:
        members, roots = clusters(np.concatenate([forest, part.reshape(-1, 2)]))
        inner = members != roots
        forest = np.stack([roots[inner], members[inner]], axis=1)
    return forest
