"""Positions -> batches: the token stream, a pure function of (corpus, mixture, seed, position).

The journey of a position: `mixture.lookup` turns it into the k-th sequence of a source. The source is shuffled in
blocks of `shuffle_block_tokens` tokens, and its shuffled blocks, one after the other, epoch after epoch, are the
source's own stream (epochs.py). Sequence k covers tokens [k*S, (k+1)*S) of it, so the sequence length S may be anything
and changing it re-deals nothing. A sequence is therefore made of pieces, each inside one block; where two pieces meet
(a seam) and after each end-of-document token a new document begins.

Labels are the next token **in file order**, also at the end of a piece; the end-of-document token has none (-100), so
no label crosses a document. State: nothing but the position. Reading the same position again gives the same batch.

This is one segment of a run; segments.py puts them together.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

import numpy as np

from data_pipeline.epochs import DEFAULT_SHUFFLE_BLOCK_TOKENS, Place, SourceEpochs
from data_pipeline.errors import DataError
from data_pipeline.manifest import Corpus
from data_pipeline.mixture import Mixture
from data_pipeline.shards import BadBlockError

IGNORED_LABEL = -100


@dataclass(kw_only=True, slots=True)
class Batch:
    """B sequences of S tokens.

    input_ids, labels [B, S] int64 (label -100: not supervised); document_ids [B, S] int32, from 0 in every row and
    growing by one where a document begins; source_ids [B] int32, index in the manifest's sources.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    document_ids: np.ndarray
    source_ids: np.ndarray

    def __len__(self) -> int:
        return len(self.source_ids)

    def rows(self, start: int, stop: int) -> "Batch":
        """The sequences start..stop-1 (views, not copies)."""
        return Batch(
            input_ids=self.input_ids[start:stop],
            labels=self.labels[start:stop],
            document_ids=self.document_ids[start:stop],
            source_ids=self.source_ids[start:stop],
        )


@dataclass(slots=True)
class _Pieces:
    """Where the pieces of some rows lie, and the token that follows each in its file (-100: the file ends)."""

    rows: list[int] = field(default_factory=list)
    begins: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)  # column of the last token
    following: list[int] = field(default_factory=list)
    hidden: list[tuple[int, int]] = field(default_factory=list)  # (row, column) of labels that are damaged tokens


class TokenStream:
    """The training stream of one schedule segment.

    corpus, mixture: parallel (the mixture's names are the manifest's, in order). sequence_length S in tokens.
    shuffle_block_tokens: the unit of shuffling; at most the size of the smallest source in use.
    cursors: tokens of each source that earlier segments have consumed (default: none).
    Raises DataError when these do not fit together.
    """

    def __init__(
        self,
        corpus: Corpus,
        mixture: Mixture,
        sequence_length: int,
        seed: int,
        *,
        shuffle_block_tokens: int = DEFAULT_SHUFFLE_BLOCK_TOKENS,
        cursors: Sequence[int] | None = None,
    ) -> None:
        if sequence_length < 1:
            raise DataError(f"data.sequence_length={sequence_length}: must be >= 1")
        if shuffle_block_tokens < 1:
            raise DataError(f"data.shuffle_block_tokens={shuffle_block_tokens}: must be >= 1")
        self.corpus, self.mixture, self.seed = corpus, mixture, seed
        self.sequence_length, self.shuffle_block_tokens = sequence_length, shuffle_block_tokens
        self.cursors = [0] * len(mixture.names) if cursors is None else [int(cursor) for cursor in cursors]
        self.epochs = [SourceEpochs(source, shuffle_block_tokens, seed) for source in corpus.manifest.sources]
        self._check_sources()

    def _check_sources(self) -> None:
        manifest, mixture = self.corpus.manifest, self.mixture
        if mixture.names != manifest.names or mixture.kinds != manifest.kinds:
            raise DataError("mixture: its sources are not those of the corpus, in order; plan it from this manifest")
        if len(self.cursors) != len(mixture.names) or min(self.cursors) < 0:
            raise DataError(f"cursors: {len(self.cursors)} values for {len(mixture.names)} sources; one >= 0 each")
        for source, epochs, quota in zip(manifest.sources, self.epochs, mixture.quotas, strict=True):
            if quota and not epochs.cycle_tokens:
                raise DataError(
                    f"data.shuffle_block_tokens={self.shuffle_block_tokens}: source {source.name!r} has only "
                    f"{source.train.tokens} training tokens; lower it, or give the source share 0"
                )

    @property
    def total(self) -> int:
        """Positions that were planned: sequences of all sources. The stream goes on behind them."""
        return self.mixture.total

    def read(self, positions: Sequence[int]) -> Batch:
        """The sequences at `positions` (each >= 0), in that order.

        Ids are copied piece by piece; all else is done once for the whole batch.
        """
        B, S = len(positions), self.sequence_length
        inputs_BS = np.empty((B, S), dtype=np.int64)
        source_ids_B = np.empty(B, dtype=np.int32)
        pieces = _Pieces()
        for row, position in enumerate(positions):
            source, index = self.mixture.lookup(int(position))
            source_ids_B[row] = source
            self._fill(source, index, inputs_BS[row], row, pieces)
        vocab_size = self.corpus.manifest.vocab_size
        if int(inputs_BS.max(initial=0)) >= vocab_size or max(pieces.following, default=0) >= vocab_size:
            self._refuse_ids(positions)
        labels_BS = np.empty_like(inputs_BS)
        labels_BS[:, :-1] = inputs_BS[:, 1:]
        labels_BS[pieces.rows, pieces.ends] = pieces.following
        for row, column in pieces.hidden:
            labels_BS[row, column] = IGNORED_LABEL
        starts_BS = np.zeros((B, S), dtype=bool)
        starts_BS[pieces.rows, pieces.begins] = True
        return _finish(inputs_BS, labels_BS, starts_BS, source_ids_B, self.corpus.manifest.end_of_document_id)

    def _fill(self, source: int, index: int, ids: np.ndarray, row: int, pieces: _Pieces) -> None:
        """Fill one row [S] from the source's shuffled stream and note its pieces."""
        epochs, S = self.epochs[source], self.sequence_length
        offset, filled = self.cursors[source] + index * S, 0
        while filled < S:
            place = epochs.place(offset + filled)
            tokens = self.corpus.tokens(source, "train", place.variant)
            end = place.token + min(place.left, S - filled)
            # One token more, for the label of the last; the very last token of a source has no next.
            size = end - place.token
            piece, hidden = self._read_piece(source, place.variant, place.token, min(end + 1, tokens.num_tokens))
            ids[filled : filled + size] = piece[:size]
            if hidden is not None:
                columns = filled - 1 + np.flatnonzero(hidden)  # of the labels that would be these tokens
                pieces.hidden += [(row, column) for column in columns.tolist() if column >= filled]
            pieces.rows.append(row)
            pieces.begins.append(filled)
            filled += size
            pieces.ends.append(filled - 1)
            pieces.following.append(int(piece[size]) if len(piece) > size else IGNORED_LABEL)

    def _read_piece(self, source: int, variant: int, begin: int, end: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Ids of the tokens begin..end-1, and which of them are damaged and replaced (None: none).

        A damaged token is shown as an end of document and never asked for as a label. That is a function of the token
        alone: the same for every layout, and every source keeps its share of the positions.
        """
        tokens = self.corpus.tokens(source, "train", variant)
        try:
            return tokens.read(begin, end), None
        except BadBlockError:
            if self.corpus.on_bad_block is None:
                raise
        ids, damaged = tokens.read_around(begin, end, self.corpus.manifest.end_of_document_id)
        hidden = np.zeros(end - begin, dtype=bool)
        for bad in damaged:
            self.corpus.on_bad_block(source, variant, bad)
            hidden[max(0, bad.start - begin) : bad.stop - begin] = True
        return ids, hidden

    def prefetch(self, positions: Sequence[int]) -> None:
        """Begin to fetch what `read` of these positions needs; returns at once. Nothing for a local corpus."""
        if not self.corpus.is_remote:
            return
        for source, place, end in self._places(positions):
            last = self.corpus.tokens(source, "train", place.variant).num_tokens
            self.corpus.prefetch(source, place.token, min(end + 1, last), place.variant)

    def _places(self, positions: Sequence[int]) -> Iterator[tuple[int, Place, int]]:
        """(source, place of the first token, end) of every piece of the rows at `positions`, in order."""
        for position in positions:
            source, index = self.mixture.lookup(int(position))
            offset = self.cursors[source] + index * self.sequence_length
            end = offset + self.sequence_length
            while offset < end:
                place = self.epochs[source].place(offset)
                size = min(place.left, end - offset)
                yield source, place, place.token + size
                offset += size

    def _refuse_ids(self, positions: Sequence[int]) -> NoReturn:
        """Say where the id is that some row has and the vocabulary has not."""
        vocab_size = self.corpus.manifest.vocab_size
        for source, place, end in self._places(positions):
            tokens = self.corpus.tokens(source, "train", place.variant)
            piece, _ = self._read_piece(source, place.variant, place.token, min(end + 1, tokens.num_tokens))
            worst = int(piece.argmax())
            if int(piece[worst]) >= vocab_size:
                raise DataError(
                    f"{tokens.locate(place.token + worst)}: token id {int(piece[worst])} is outside the vocabulary "
                    f"of {vocab_size}; the shard was made with another tokenizer, build the corpus again"
                )
        raise AssertionError("every id is inside the vocabulary")

    def consumed_tokens(self, position: int) -> list[int]:
        """Tokens of every source that the first `position` sequences hold (this segment)."""
        return [count * self.sequence_length for count in self.mixture.counts(position)]

    def cursors_at(self, position: int) -> list[int]:
        """Where a next segment starts in every source, after `position` sequences of this one."""
        return [a + b for a, b in zip(self.cursors, self.consumed_tokens(position), strict=True)]

    @property
    def content_hash(self) -> str:
        """sha256 of mixture and cursors: which sequence of which source comes at a position."""
        plan = [self.mixture.content_hash, self.cursors]
        return hashlib.sha256(json.dumps(plan).encode()).hexdigest()


def heldout_batches(
    corpus: Corpus, sequence_length: int, batch_size: int, max_sequences_per_source: int | None = None
) -> Iterator[Batch]:
    """The held-out documents, source after source, in file order; the same on every call.

    Rows hold consecutive tokens of one source, each token once; every document has its own id, and the last row of
    a source is padded with the end-of-document token, labels -100 and one more document id. At most
    `max_sequences_per_source` rows of each source (None: all). The last batch may have fewer than `batch_size` rows.
    """
    if sequence_length < 1 or batch_size < 1:
        raise DataError(f"heldout: sequence_length={sequence_length}, batch_size={batch_size}; both must be >= 1")
    rows: list[Batch] = []
    for source in range(len(corpus.manifest.sources)):
        for row in _heldout_rows(corpus, source, sequence_length, max_sequences_per_source):
            rows.append(row)
            if len(rows) == batch_size:
                yield _stack(rows)
                rows = []
    if rows:
        yield _stack(rows)


def _heldout_rows(corpus: Corpus, source: int, S: int, limit: int | None) -> Iterator[Batch]:
    tokens, eod = corpus.tokens(source, "heldout"), corpus.manifest.end_of_document_id
    num_rows = -(-tokens.num_tokens // S)
    for row in range(num_rows if limit is None else min(limit, num_rows)):
        piece = tokens.read(row * S, min((row + 1) * S + 1, tokens.num_tokens)).astype(np.int64)
        if int(piece.max()) >= corpus.manifest.vocab_size:
            raise DataError(
                f"{tokens.locate(row * S + int(piece.argmax()))}: token id {int(piece.max())} is outside the "
                f"vocabulary of {corpus.manifest.vocab_size}; build the corpus again"
            )
        inputs, labels = np.full((1, S), eod), np.full((1, S), IGNORED_LABEL)
        inputs[0, : len(piece[:S])] = piece[:S]
        labels[0, : len(piece) - 1] = piece[1:]
        starts = np.zeros((1, S), dtype=bool)
        batch = _finish(inputs, labels, starts, np.array([source], dtype=np.int32), eod)
        # Every padding token looks like an end of document: keep them together as one document.
        first_padding = len(piece[:S])
        if first_padding < S:
            batch.document_ids[0, first_padding:] = batch.document_ids[0, first_padding - 1] + 1
        yield batch


def _finish(inputs: np.ndarray, labels: np.ndarray, starts: np.ndarray, source_ids: np.ndarray, eod: int) -> Batch:
    """Labels and document ids from the ids [B, S] and the marked seams; consumes its arguments."""
    ends = inputs == eod
    labels[ends] = IGNORED_LABEL
    starts[:, 1:] |= ends[:, :-1]
    starts[:, 0] = False
    document_ids = np.cumsum(starts, axis=1, dtype=np.int32)
    return Batch(input_ids=inputs, labels=labels, document_ids=document_ids, source_ids=source_ids)


def _stack(rows: list[Batch]) -> Batch:
    return Batch(
        input_ids=np.concatenate([row.input_ids for row in rows]),
        labels=np.concatenate([row.labels for row in rows]),
        document_ids=np.concatenate([row.document_ids for row in rows]),
        source_ids=np.concatenate([row.source_ids for row in rows]),
    )
