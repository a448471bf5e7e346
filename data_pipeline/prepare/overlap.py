"""Held-out documents that are also in the training documents, in part, go back to training.

Exact copies are gone by now (dedup.py), but generated files, forked classes and templated docstrings remain: a loss on
them measures memory. The journey: the normalised text of every held-out candidate becomes a set of hashes, one for each
window of 64 bytes whose hash is divisible by 8 (so the same windows are picked wherever they stand) -> all training
documents are hashed alike and mark what they share -> a candidate of which more than `max_overlap` is marked is
returned to training, and marks its own windows in turn, until nothing changes. Memory holds the candidates' hashes
only. This is no near-duplicate search among the training documents; that is another stage.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from data_pipeline.ledger import Ledger
from data_pipeline.prepare.collect import StagedDocument, StagedGroup
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


class _Candidates:
    """The windows of all held-out candidates and which of them training has."""

    def __init__(self, groups: Iterable[StagedGroup], folder: Path) -> None:
        self.owners: list[tuple[StagedGroup, StagedDocument]] = []
        hashes = []
        for group in groups:
            for document in group.read(folder):
                if group.is_heldout(document.split_hash):
                    self.owners.append((group, document))
                    hashes.append(window_hashes(document.text))
        self.known = np.unique(np.concatenate(hashes)) if hashes else np.empty(0, dtype=np.uint64)
        self.places = [np.searchsorted(self.known, own) for own in hashes]
        self.marked = np.zeros(self.known.size, dtype=bool)

    def mark(self, hashes: np.ndarray) -> None:
        at = np.minimum(np.searchsorted(self.known, hashes), self.known.size - 1)
        self.marked[at[self.known[at] == hashes]] = True

    def take_overlapping(self, max_overlap: float) -> list[int]:
        """Numbers of the candidates above the bound; their windows count as training from now on."""
        taken: list[int] = []
        left = set(range(len(self.owners)))
        while over := [i for i in sorted(left) if self.marked[self.places[i]].mean() > max_overlap]:
            for i in over:
                self.marked[self.places[i]] = True
            left.difference_update(over)
            taken += over
        return taken


def return_overlapping(
    groups: list[StagedGroup], folder: Path, max_overlap: float, ledger: Ledger, progress: Callable[[str], None]
) -> None:
    """Return held-out candidates that overlap training by more than `max_overlap` (0..1; 1 returns none)."""
    candidates = _Candidates(groups, folder)
    if not candidates.owners or max_overlap >= 1:
        return
    for group in groups:
        for document in group.read(folder):
            if not group.is_heldout(document.split_hash):
                candidates.mark(window_hashes(document.text))
    taken = candidates.take_overlapping(max_overlap)
    for number in taken:
        group, document = candidates.owners[number]
        group.returned.append(document.split_hash)
    sentence = (
        f"held out: {len(taken)} of {len(candidates.owners)} candidates had more than {max_overlap:.0%} of their "
        "text in training documents and went back to training"
    )
    ledger.note(sentence)
    progress(sentence)
