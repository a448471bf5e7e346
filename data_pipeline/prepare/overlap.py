"""Held-out documents that are also in the training documents, in part, go back to training.

Copies are gone by now (exact.py, near.py), but generated files, forked classes and templated docstrings remain: loss
on them measures memory. The journey: the normalised text of every held-out candidate becomes a set of hashes, one for
each window of 64 bytes whose hash is divisible by 8 (so the same windows are picked wherever they stand) -> training
documents are hashed alike and mark what they share, task by task -> a candidate of which more than `max_overlap` is
marked is returned to training, and marks its own windows in turn, until nothing changes. Memory holds the candidates'
hashes only. This is no near-duplicate search among the training documents; that is near_dedup.py.
"""

from collections.abc import Sequence

import numpy as np

from data_pipeline.prepare.dedup import normalise

WINDOW_BYTES = 64
_DOUBLINGS = 6
_SAMPLE_MASK = np.uint64(7)
_MULTIPLIER = 0x9E3779B97F4A7C15
# Mixed before sampling: the low bits of a polynomial in an odd number say little.
_MIX_SHIFT, _MIX = np.uint64(32), np.uint64(0xD6E8FEB86659FD93)


def window_hashes(text: str) -> np.ndarray:
    """Sampled hashes [N] uint64 of the 64-byte windows of the normalised text; sorted, each once."""
    data = np.frombuffer(normalise(text).encode(), dtype=np.uint8).astype(np.uint64)
    if data.size < WINDOW_BYTES:
        data = np.pad(data, (0, WINDOW_BYTES - data.size))
    width, power = 1, _MULTIPLIER
    for _ in range(_DOUBLINGS):
        # The hash of 2w bytes from the hashes of two times w bytes: h(a b) = h(a) * m^w + h(b).
        data = data[:-width] * np.uint64(power) + data[width:]
        width, power = 2 * width, power * power & 0xFFFFFFFFFFFFFFFF
    data ^= data >> _MIX_SHIFT
    data *= _MIX
    data ^= data >> _MIX_SHIFT
    picked = np.unique(data[(data & _SAMPLE_MASK) == 0])
    return picked if picked.size else data[:1]  # a short text may have none


def mark(known: np.ndarray, marked: np.ndarray, hashes: np.ndarray) -> None:
    """Set `marked` [K] bool where `known` [K] uint64, sorted, is among `hashes`."""
    if known.size:
        at = np.minimum(np.searchsorted(known, hashes), known.size - 1)
        marked[at[known[at] == hashes]] = True


def overlapping(known: np.ndarray, marked: np.ndarray, windows: Sequence[np.ndarray], max_overlap: float) -> list[int]:
    """Which candidates share more than `max_overlap` of their `windows` with training; sorted.

    known [K] uint64, sorted: the windows of all candidates; marked [K]: those that training has. A candidate that is
    returned counts as training from then on, so others may follow it.
    """
    marked = marked.copy()
    places = [np.searchsorted(known, own) for own in windows]
    left = set(range(len(places)))
    while over := [i for i in sorted(left) if marked[places[i]].mean() > max_overlap]:
        for i in over:
            marked[places[i]] = True
        left.difference_update(over)
    return sorted(set(range(len(places))) - left)
