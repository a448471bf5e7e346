"""Which held-out tokens are looked at: documents inside the rows that `loopcoder evaluate` reads.

A sample is the part of one document that lies in one row, without the end-of-document token, which predicts nothing.
A row's document begins where the row does at the latest: the model has seen nothing before, so nor does a lens.
A document longer than a row is several samples, which are not independent: all bear its number, and count as one
document in every interval (as in evaluation/documents.py).
"""

from dataclasses import dataclass, field

import numpy as np

from data_pipeline.manifest import Corpus
from data_pipeline.stream import heldout_batches
from loopcoder_train.config import UserError
from loopcoder_train.engines.engine import MicroBatch
from loopcoder_train.model.loss import IGNORE_INDEX
from loopcoder_train.training.batch import to_micro_batch


@dataclass(frozen=True, slots=True)
class Sample:
    """The tokens [first, stop) of a row; `document`: number of its document, among those that were read."""

    document: int
    first: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.first


@dataclass(frozen=True, slots=True)
class SampledRow:
    """One row [1, S] and the samples in it."""

    batch: MicroBatch
    samples: list[Sample]


@dataclass(slots=True)
class Selection:
    """The rows of a diagnosis."""

    rows: list[SampledRow] = field(default_factory=list)
    by_source: dict[str, int] = field(default_factory=dict)  # number of samples
    too_short: int = 0  # documents, or parts of one in a row, passed over for that

    @property
    def num_samples(self) -> int:
        return sum(self.by_source.values())

    @property
    def num_documents(self) -> int:
        """That the samples are parts of."""
        return len({sample.document for row in self.rows for sample in row.samples})

    @property
    def tokens(self) -> int:
        """Of all samples."""
        return sum(len(sample) for row in self.rows for sample in row.samples)


def select_samples(corpus: Corpus, sequence_length: int, num_samples: int, min_tokens: int) -> Selection:
    """The first documents of every source with at least `min_tokens` tokens, about as many of each source.

    Sources share `num_samples` alike; what a small source cannot give is shared by the others. No more rows are read
    than samples are wanted, so there are fewer samples where the held-out set has no more, or hardly any that are long
    enough. Raises UserError when there is none at all.
    """
    names = corpus.manifest.names
    rows_of = [-(-source.heldout.tokens // sequence_length) for source in corpus.manifest.sources]
    most_rows = max(fair_shares(rows_of, num_samples), default=0)
    found = _documents(corpus, sequence_length, most_rows, min_tokens)
    wanted = fair_shares([sum(len(samples) for _, samples in rows) for rows in found.rows], num_samples)
    selection = Selection(too_short=found.too_short)
    for source, rows in enumerate(found.rows):
        left = wanted[source]
        for batch, samples in rows:
            samples = samples[:left]
            left -= len(samples)
            if samples:
                selection.rows.append(SampledRow(batch, samples))
                selection.by_source[names[source]] = selection.by_source.get(names[source], 0) + len(samples)
    if not selection.rows:
        raise UserError(
            f"{corpus.directory}: no held-out document has min_sample_tokens={min_tokens} tokens inside a row of "
            f"{sequence_length}; lower it, or build the corpus with a larger held-out share"
        )
    return selection


def fair_shares(available: list[int], wanted: int) -> list[int]:
    """How many to take of each, as equal as `available` allows, `wanted` in all if there are as many."""
    shares, left = [0] * len(available), wanted
    order = sorted(range(len(available)), key=lambda index: available[index])
    for done, index in enumerate(order):
        shares[index] = min(available[index], left // (len(order) - done))
        left -= shares[index]
    return shares


@dataclass(slots=True)
class _Found:
    rows: list[list[tuple[MicroBatch, list[Sample]]]]  # of every source
    too_short: int = 0


def _documents(corpus: Corpus, sequence_length: int, most_rows: int, min_tokens: int) -> _Found:
    found = _Found([[] for _ in corpus.manifest.sources])
    document, goes_on = -1, None  # goes_on: source of a document that the row before did not end
    for batch in heldout_batches(corpus, sequence_length, 1, most_rows):
        source, samples = int(batch.source_ids[0]), []
        for first, stop in document_spans(batch.document_ids[0], batch.labels[0]):
            if first > 0 or goes_on != source:
                document += 1
            samples.append(Sample(document, first, stop))
        goes_on = source if batch.labels[0, -1] != IGNORE_INDEX else None
        kept = [sample for sample in samples if len(sample) >= min_tokens]
        found.too_short += len(samples) - len(kept)
        if kept:
            found.rows[source].append((to_micro_batch(batch), kept))
    return found


def document_spans(document_ids: np.ndarray, labels: np.ndarray) -> list[tuple[int, int]]:
    """[first, stop) of every document of a row [S], up to its last token that has a label; none where none has."""
    bounds = np.flatnonzero(np.diff(document_ids, prepend=document_ids[0] - 1)).tolist()
    spans = []
    for first, end in zip(bounds, [*bounds[1:], len(labels)], strict=True):
        used = np.flatnonzero(labels[first:end] != IGNORE_INDEX)
        if len(used):
            assert len(used) == used[-1] + 1, "held-out documents have labels throughout"
            spans.append((first, first + len(used)))
    return spans
