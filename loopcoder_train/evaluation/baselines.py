"""What a loss must beat: the unigram entropy of the held-out set and a bigram model.

Both are measured over the same supervised tokens as the model's loss, in nats per token.

Unigram entropy: H = - sum_y p(y) ln p(y) with p the held-out set's own token frequencies, that is the loss of the best
possible predictor that ignores the context. Bigram: counts of a training sample, interpolated with smoothed unigrams
after Witten and Bell (1991), which needs no tuned constant:

    p(y | x) = (c(x, y) + t(x) p(y)) / (c(x) + t(x)),   p(y) = (c(y) + 1) / (N + V)

t(x) is the number of different tokens seen after x. A token x never seen falls back to p(y).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from data_pipeline.manifest import Corpus
from loopcoder_train.config import UserError
from loopcoder_train.model.loss import IGNORE_INDEX


class LabelledBatch(Protocol):
    """`input_ids` and `labels` int64 [B, S]; ignored labels are IGNORE_INDEX."""

    input_ids: np.ndarray
    labels: np.ndarray


def unigram_entropy(batches: Iterable[LabelledBatch]) -> float:
    """Entropy of the supervised tokens in nats. UserError when there are none."""
    _, labels = supervised_pairs(batches)
    if not len(labels):
        raise UserError("held-out set: has no supervised token; build the corpus with a held-out share")
    _, counts = np.unique(labels, return_counts=True)
    shares = counts / counts.sum()
    return float(-(shares * np.log(shares)).sum())


class BigramModel:
    """Counts of (token, next token) pairs of a training sample. `vocab_size` bounds the ids; num_tokens: pairs."""

    def __init__(self, batches: Iterable[LabelledBatch], vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._context_counts, unigrams = np.zeros((2, vocab_size), np.int64)
        self._pairs, self._pair_counts = np.empty(0, np.int64), np.empty(0, np.int64)
        for batch in batches:  # one after the other: the sample as a whole would be some GB of int64
            inputs, labels = supervised_pairs([batch])
            self._context_counts += np.bincount(inputs, minlength=vocab_size)
            unigrams += np.bincount(labels, minlength=vocab_size)
            self._count_pairs(inputs * vocab_size + labels)
        self.num_tokens = int(unigrams.sum())
        if not self.num_tokens:
            raise UserError("bigram baseline: the training sample has no supervised token")
        self._followers = np.bincount(self._pairs // vocab_size, minlength=vocab_size)
        self._unigram = (unigrams + 1.0) / (self.num_tokens + vocab_size)

    def _count_pairs(self, keys: np.ndarray) -> None:
        """Add those of a batch to the sorted counts of all pairs."""
        new, counts = np.unique(keys, return_counts=True)
        self._pairs, place = np.unique(np.concatenate([self._pairs, new]), return_inverse=True)
        both = np.concatenate([self._pair_counts, counts])
        self._pair_counts = np.bincount(place, weights=both, minlength=len(self._pairs)).astype(np.int64)

    def probabilities(self, inputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """p(label | input) of every pair, float64; both int64 [N]."""
        keys = inputs * self._vocab_size + labels
        place = np.minimum(np.searchsorted(self._pairs, keys), len(self._pairs) - 1)
        seen = np.where(self._pairs[place] == keys, self._pair_counts[place], 0)
        followers = self._followers[inputs]
        known = np.maximum(self._context_counts[inputs] + followers, 1)
        smoothed = (seen + followers * self._unigram[labels]) / known
        return np.where(followers > 0, smoothed, self._unigram[labels])

    def loss(self, batches: Iterable[LabelledBatch]) -> float:
        """Nats per supervised token of `batches`. UserError when there are none."""
        inputs, labels = supervised_pairs(batches)
        if not len(labels):
            raise UserError("held-out set: has no supervised token; build the corpus with a held-out share")
        return float(-np.log(self.probabilities(inputs, labels)).mean())


def supervised_pairs(batches: Iterable[LabelledBatch]) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and labels int64 [N] of all supervised positions, in order."""
    inputs, labels = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for batch in batches:
        used = batch.labels != IGNORE_INDEX
        inputs.append(batch.input_ids[used].astype(np.int64))
        labels.append(batch.labels[used].astype(np.int64))
    return np.concatenate(inputs), np.concatenate(labels)


def training_sample(corpus: Corpus, num_tokens: int, text_share: float) -> Iterator[LabelledBatch]:
    """About `num_tokens` training tokens, text and code in the run's proportion, one row [1, n] per source.

    Inside text and inside code every source gives in proportion to its size, its first documents. A run with its own
    `data.shares` sees other proportions; for a baseline that is near enough.
    """
    sources = corpus.manifest.sources
    available = {kind: sum(s.train.tokens for s in sources if s.kind == kind) for kind in ("text", "code")}
    share = {"text": text_share, "code": 1.0 - text_share}
    for index, source in enumerate(sources):
        wanted = num_tokens * share[source.kind] * source.train.tokens / max(1, available[source.kind])
        size = min(round(wanted), source.train.tokens)
        if size > 1:
            yield _row(corpus.tokens(index).read(0, size).astype(np.int64), corpus.manifest.end_of_document_id)


def _row(tokens: np.ndarray, end_of_document_id: int) -> LabelledBatch:
    inputs = tokens[:-1]
    labels = np.where(inputs == end_of_document_id, IGNORE_INDEX, tokens[1:])
    return _Row(inputs[None], labels[None])


@dataclass(slots=True)
class _Row:
    input_ids: np.ndarray
    labels: np.ndarray
