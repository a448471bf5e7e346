"""Positions -> batches: the token stream, a pure function of (corpus, mixture, seed, position).

The journey of a position: `mixture.lookup` turns it into the k-th sequence of a source. The source is shuffled in
blocks of `shuffle_block_tokens` tokens: in each epoch a keyed permutation orders its blocks, and the shuffled blocks,
one after the other, epoch after epoch, are the source's own stream. Sequence k covers tokens [k*S, (k+1)*S) of it, so
the sequence length S may be anything and changing it re-deals nothing. A sequence is therefore made of pieces, each
inside one block; where two pieces meet (a seam) and after each end-of-document token a new document begins.

Labels are the next token **in file order**, also at the end of a piece; the end-of-document token has none (-100), so
no label crosses a document. State: nothing but the position. Reading the same position again gives the same batch.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.manifest import Corpus
from data_pipeline.mixture import Mixture
from data_pipeline.permutation import block_permutation
from data_pipeline.shards import BadBlockError

IGNORED_LABEL = -100
DEFAULT_SHUFFLE_BLOCK_TOKENS = 2048
_STATE_VERSION = 1


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


class TokenStream:
    """The training stream of one schedule segment.

    corpus, mixture: parallel (the mixture's names are the manifest's, in order). sequence_length S in tokens.
    shuffle_block_tokens: the unit of shuffling; at most the size of the smallest source in use.
    cursors: tokens of each source that earlier segments have consumed (default: none). segment: its number.
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
        segment: int = 0,
    ) -> None:
        if sequence_length < 1:
            raise DataError(f"data.sequence_length={sequence_length}: must be >= 1")
        if shuffle_block_tokens < 1:
            raise DataError(f"data.shuffle_block_tokens={shuffle_block_tokens}: must be >= 1")
        self.corpus, self.mixture, self.seed = corpus, mixture, seed
        self.sequence_length, self.shuffle_block_tokens = sequence_length, shuffle_block_tokens
        self.segment = segment
        self.cursors = [0] * len(mixture.names) if cursors is None else [int(cursor) for cursor in cursors]
        self._check_sources()
        self._num_blocks = [
            shuffle_blocks(source.train.tokens, shuffle_block_tokens) for source in corpus.manifest.sources
        ]

    def _check_sources(self) -> None:
        manifest, mixture = self.corpus.manifest, self.mixture
        if mixture.names != manifest.names or mixture.kinds != manifest.kinds:
            raise DataError("mixture: its sources are not those of the corpus, in order; plan it from this manifest")
        if len(self.cursors) != len(mixture.names) or min(self.cursors) < 0:
            raise DataError(f"cursors: {len(self.cursors)} values for {len(mixture.names)} sources; one >= 0 each")
        for source, quota in zip(manifest.sources, mixture.quotas, strict=True):
            if quota and not shuffle_blocks(source.train.tokens, self.shuffle_block_tokens):
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

        Raises DataError for a negative position, a damaged shard, or a token id outside the vocabulary.
        """
        B, S = len(positions), self.sequence_length
        inputs_BS = np.empty((B, S), dtype=np.int64)
        labels_BS = np.empty((B, S), dtype=np.int64)
        starts_BS = np.zeros((B, S), dtype=bool)
        source_ids_B = np.empty(B, dtype=np.int32)
        for row, position in enumerate(positions):
            source, index = self.mixture.lookup(int(position))
            source_ids_B[row] = source
            self._fill(source, index, inputs_BS[row], labels_BS[row], starts_BS[row])
        return _finish(inputs_BS, labels_BS, starts_BS, source_ids_B, self.corpus.manifest.end_of_document_id)

    def _fill(self, source: int, index: int, inputs: np.ndarray, labels: np.ndarray, starts: np.ndarray) -> None:
        """Fill one row from the source's shuffled stream; marks seams in `starts`."""
        tokens = self.corpus.tokens(source)
        offset, filled = self.cursors[source] + index * self.sequence_length, 0
        while filled < self.sequence_length:
            begin, left = self._place(source, offset + filled)
            size = min(left, self.sequence_length - filled)
            # One token more, for the label of the last; the very last token of a source has no next.
            piece, hidden = self._read_piece(source, begin, min(begin + size + 1, tokens.num_tokens))
            self._check_ids(piece, source, begin)
            inputs[filled : filled + size] = piece[:size]
            labels[filled : filled + size][: len(piece) - 1] = piece[1:]
            if hidden is not None:
                labels[filled : filled + size][: len(piece) - 1][hidden[1:]] = IGNORED_LABEL
            labels[filled + len(piece) - 1 : filled + size] = IGNORED_LABEL
            starts[filled] = True
            filled += size

    def _read_piece(self, source: int, begin: int, end: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Ids of the tokens begin..end-1, and which of them are damaged and replaced (None: none).

        A damaged token is shown as an end of document and never asked for as a label. That is a function of the token
        alone: the same for every layout, and every source keeps its share of the positions.
        """
        tokens = self.corpus.tokens(source)
        try:
            return tokens.read(begin, end), None
        except BadBlockError:
            if self.corpus.on_bad_block is None:
                raise
        ids, damaged = tokens.read_around(begin, end, self.corpus.manifest.end_of_document_id)
        hidden = np.zeros(end - begin, dtype=bool)
        for bad in damaged:
            self.corpus.on_bad_block(source, bad)
            hidden[max(0, bad.start - begin) : bad.stop - begin] = True
        return ids, hidden

    def prefetch(self, positions: Sequence[int]) -> None:
        """Begin to fetch what `read` of these positions needs; returns at once. Nothing for a local corpus."""
        if not self.corpus.is_remote:
            return
        for position in positions:
            source, index = self.mixture.lookup(int(position))
            offset = self.cursors[source] + index * self.sequence_length
            end, last = offset + self.sequence_length, self.corpus.manifest.sources[source].train.tokens
            while offset < end:
                begin, left = self._place(source, offset)
                size = min(left, end - offset)
                self.corpus.prefetch(source, begin, min(begin + size + 1, last))
                offset += size

    def _place(self, source: int, offset: int) -> tuple[int, int]:
        """Token `offset` of the shuffled stream -> (token in file order, tokens left in its block)."""
        slot, within = divmod(offset, self.shuffle_block_tokens)
        epoch, slot = divmod(slot, self._num_blocks[source])
        order = block_permutation(self._num_blocks[source], self.seed, self.mixture.names[source], epoch)
        return order(slot) * self.shuffle_block_tokens + within, self.shuffle_block_tokens - within

    def _check_ids(self, piece: np.ndarray, source: int, begin: int) -> None:
        vocab_size = self.corpus.manifest.vocab_size
        if int(piece.max()) < vocab_size:
            return
        worst = int(piece.argmax())
        raise DataError(
            f"{self.corpus.tokens(source).locate(begin + worst)}: token id {int(piece[worst])} is outside the "
            f"vocabulary of {vocab_size}; the shard was made with another tokenizer, build the corpus again"
        )

    def consumed_tokens(self, position: int) -> list[int]:
        """Tokens of every source that the first `position` sequences hold (this segment)."""
        return [count * self.sequence_length for count in self.mixture.counts(position)]

    def cursors_at(self, position: int) -> list[int]:
        """Where a next segment starts in every source, after `position` sequences of this one."""
        return [a + b for a, b in zip(self.cursors, self.consumed_tokens(position), strict=True)]

    def state(self, position: int) -> dict[str, Any]:
        """What a checkpoint needs to continue at `position`: < 1 KB of JSON, equal on all ranks."""
        plan = [self.mixture.content_hash, self.cursors]
        return {
            "version": _STATE_VERSION,
            "segment": self.segment,
            "position": int(position),
            "manifest_hash": self.corpus.manifest.manifest_hash,
            "tokenizer_hash": self.corpus.manifest.tokenizer_hash,
            "mixture_hash": hashlib.sha256(json.dumps(plan).encode()).hexdigest(),
            "seed": self.seed,
            "sequence_length": self.sequence_length,
            "shuffle_block_tokens": self.shuffle_block_tokens,
        }

    def check_state(self, state: dict[str, Any], *, discarded_sequences: int = 0) -> int:
        """The position of a saved state. Raises DataError, naming the keys, if it is of another stream.

        `discarded_sequences`: how many were read and not trained; so far behind the planned ones a run may come.
        """
        own = self.state(0)
        missing = sorted(own.keys() - state.keys())
        if missing:
            raise DataError(f"data state: {', '.join(missing)} missing; the checkpoint is from another version")
        differing = [key for key in own if key != "position" and state[key] != own[key]]
        if differing:
            shown = "; ".join(f"{key} was {str(state[key])[:16]}, is {str(own[key])[:16]}" for key in differing)
            raise DataError(f"data state: {shown}; resume with the data of the run, or start a new run")
        last = self.total + discarded_sequences
        if not 0 <= state["position"] <= last:
            raise DataError(f"data state: position {state['position']} is outside 0..{last}")
        return int(state["position"])


def shuffle_blocks(train_tokens: int, shuffle_block_tokens: int) -> int:
    """Whole shuffle blocks in a source; the tokens after the last one are the tail, which the stream never shows."""
    return train_tokens // shuffle_block_tokens


def tail_tokens(corpus: Corpus, shuffle_block_tokens: int = DEFAULT_SHUFFLE_BLOCK_TOKENS) -> list[int]:
    """Training tokens of every source that no block holds, to be reported."""
    return [source.train.tokens % shuffle_block_tokens for source in corpus.manifest.sources]


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
