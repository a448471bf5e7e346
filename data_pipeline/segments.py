"""A run is a list of segments: batch number -> (token stream of its segment, positions there).

The journey of a batch: the last segment that begins at or before batch b has it; the segment's positions are
[(b - first_batch) * G, (b - first_batch + 1) * G) with its own batch size G, mixture, corpus and sequence length. A
segment starts in every source, by name, where the segments before it stopped: those cursors follow from their
mixtures in closed form, so what was consumed stays consumed, without logs. A segment is planned for a number of
batches, which makes its quotas; it may be cut short by the next one, or go on behind its plan, and its stream is the
same either way. So a run can be extended, re-weighted, annealed, given new sources or longer sequences by appending a
segment; nothing before that is dealt anew, and the saved state notices if it would be.
"""

import bisect
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from data_pipeline.epochs import DEFAULT_SHUFFLE_BLOCK_TOKENS
from data_pipeline.errors import DataError
from data_pipeline.manifest import Corpus, SourceInfo
from data_pipeline.quotas import quotas_for
from data_pipeline.stream import Batch, TokenStream

_STATE_VERSION = 2


@dataclass(kw_only=True, slots=True)
class SegmentOptions:
    """What a segment shall read. The last six fields as in `quotas_for`; sizes in batches, sequences and tokens."""

    first_batch: int
    planned_batches: int  # that its quotas are made for, however many come
    corpus: Corpus
    sequence_length: int
    global_batch_size: int
    text_share: float = 0.5
    shares: Mapping[str, float] = field(default_factory=dict)
    max_repeats: float = 4.0


@dataclass(kw_only=True, slots=True)
class Segment:
    """A planned segment: from batch `first_batch` on, `global_batch_size` sequences of `stream` per batch."""

    first_batch: int
    planned_batches: int
    global_batch_size: int
    stream: TokenStream

    @property
    def batch_tokens(self) -> int:
        """Tokens of one batch."""
        return self.global_batch_size * self.stream.sequence_length

    def position(self, batch: int) -> int:
        """Sequences of this segment before `batch`, a batch of it or the one after its last."""
        return (batch - self.first_batch) * self.global_batch_size


class SegmentedStream:
    """The token stream of a whole run, batch by batch; a pure function of its segments.

    notes: what planning has to say. Raises DataError when the segments do not follow one another.
    """

    def __init__(self, segments: Sequence[Segment], notes: Sequence[str] = ()) -> None:
        self.segments, self.notes = list(segments), list(notes)
        self._first_batches = [segment.first_batch for segment in self.segments]
        if self._first_batches[:1] != [0] or sorted(set(self._first_batches)) != self._first_batches:
            raise DataError(
                f"data.segments: they begin at batches {self._first_batches}; the first at 0, each later than the last"
            )

    @classmethod
    def plan(
        cls,
        options: Sequence[SegmentOptions],
        *,
        seed: int,
        shuffle_block_tokens: int = DEFAULT_SHUFFLE_BLOCK_TOKENS,
    ) -> Self:
        """Plan segment after segment, each from the cursors that those before it leave.

        Raises DataError when a corpus is no extension of those before it, or cannot give what is asked of it.
        """
        _check_same_sources(options)
        segments: list[Segment] = []
        notes: list[str] = []
        for number, wanted in enumerate(options):
            before = cls(segments).consumed_tokens(wanted.first_batch) if segments else {}
            if segments:
                notes += _repeat_notes(segments[-1], options[number - 1], wanted.first_batch)
            try:
                segment, said = _plan_segment(wanted, before, seed, shuffle_block_tokens)
            except DataError as error:
                raise DataError(f"data.segments[{number - 1}]: {error}" if number else str(error)) from error
            segments.append(segment)
            notes += [f"from batch {wanted.first_batch}: {note}" if number else note for note in said]
        return cls(segments, notes)

    @property
    def batch_sizes(self) -> list[int]:
        """Sequences of a batch, segment by segment."""
        return [segment.global_batch_size for segment in self.segments]

    def segment_number(self, batch: int) -> int:
        """The number of the segment that `batch` >= 0 belongs to."""
        if batch < 0:
            raise DataError(f"batch {batch}: must be >= 0")
        return bisect.bisect_right(self._first_batches, batch) - 1

    def batch_tokens(self, batch: int) -> int:
        """Tokens of one batch."""
        return self.segments[self.segment_number(batch)].batch_tokens

    def read(self, batch: int, part: int = 0, parts: int = 1) -> Batch:
        """The `part`-th of `parts` equal contiguous parts of a batch; `parts` must divide its size."""
        segment = self.segments[self.segment_number(batch)]
        return segment.stream.read(self._positions(batch, part, parts))

    def prefetch(self, batch: int, part: int = 0, parts: int = 1) -> None:
        """Begin to fetch what `read` of the same arguments needs; returns at once. Nothing for local corpora."""
        segment = self.segments[self.segment_number(batch)]
        segment.stream.prefetch(self._positions(batch, part, parts))

    def interrupt(self) -> None:
        """End the reads of remote corpora that are in progress in other threads."""
        for corpus in self.corpora:
            corpus.interrupt()

    @property
    def corpora(self) -> list[Corpus]:
        """The corpora of the segments, each once."""
        return list({id(s.stream.corpus): s.stream.corpus for s in self.segments}.values())

    def _positions(self, batch: int, part: int, parts: int) -> range:
        segment = self.segments[self.segment_number(batch)]
        size, rest = divmod(segment.global_batch_size, parts)
        if rest:
            raise DataError(f"batch {batch}: {segment.global_batch_size} sequences cannot be cut into {parts} parts")
        first = segment.position(batch) + part * size
        return range(first, first + size)

    def tokens(self, num_batches: int) -> int:
        """Tokens of the first `num_batches` batches."""
        return sum((end - s.first_batch) * s.batch_tokens for s, end in self._begun(num_batches))

    def consumed_tokens(self, num_batches: int) -> dict[str, int]:
        """Tokens of every source, by name, in the first `num_batches` batches; every segment's sources are named."""
        consumed: Counter[str] = Counter({name: 0 for s in self.segments for name in s.stream.mixture.names})
        for segment, end in self._begun(num_batches):
            tokens = segment.stream.consumed_tokens(segment.position(end))
            consumed.update(dict(zip(segment.stream.mixture.names, tokens, strict=True)))
        return dict(consumed)

    def count(self, name: str, num_batches: int) -> int:
        """Tokens of one source in the first `num_batches` batches, in a few microseconds."""
        total = 0
        for segment, end in self._begun(num_batches):
            mixture = segment.stream.mixture
            if name in mixture.names:
                count = mixture.count(mixture.names.index(name), segment.position(end))
                total += count * segment.stream.sequence_length
        return total

    def names_of(self, batch: int) -> list[str]:
        """The sources that the source ids of a batch count."""
        return self.segments[self.segment_number(batch)].stream.mixture.names

    @property
    def kinds(self) -> dict[str, str]:
        """Source -> text | code, over all segments."""
        return {name: source.kind for name, source in self.sources().items()}

    def sources(self) -> dict[str, SourceInfo]:
        """Every source that some segment knows, by name."""
        return {info.name: info for s in self.segments for info in s.stream.corpus.manifest.sources}

    def _begun(self, num_batches: int) -> list[tuple[Segment, int]]:
        """The segments that the first `num_batches` batches reach into, each with the batch at which it ends there."""
        ends = [*self._first_batches[1:], num_batches]
        return [
            (segment, min(end, num_batches))
            for segment, end in zip(self.segments, ends, strict=True)
            if segment.first_batch < num_batches
        ]

    def state(self, batch: int) -> dict[str, Any]:
        """What a checkpoint needs to go on at `batch`: < 1 KB of JSON, equal on all ranks.

        It describes what was read, not what comes: the segment is that of the last batch, so that segments that are
        appended later leave it as it is.
        """
        number = self.segment_number(max(batch - 1, 0))
        segment = self.segments[number]
        stream = segment.stream
        return {
            "version": _STATE_VERSION,
            "batch": int(batch),
            "segment": number,
            "position": segment.position(batch),
            "first_batch": segment.first_batch,
            "planned_batches": segment.planned_batches,
            "global_batch_size": segment.global_batch_size,
            "sequence_length": stream.sequence_length,
            "shuffle_block_tokens": stream.shuffle_block_tokens,
            "seed": stream.seed,
            "manifest_hash": stream.corpus.manifest.manifest_hash,
            "tokenizer_hash": stream.corpus.manifest.tokenizer_hash,
            "mixture_hash": stream.content_hash,
            "earlier_segments": self._hash_before(number),
        }

    def _hash_before(self, number: int) -> str:
        """sha256 of everything that decides what the segments before `number` have read."""
        ends = self._first_batches[1:]
        content = [
            [
                *(segment.first_batch, end, segment.global_batch_size, segment.stream.sequence_length),
                *(segment.stream.corpus.manifest.manifest_hash, segment.stream.content_hash),
            ]
            for segment, end in zip(self.segments[:number], ends, strict=False)
        ]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def check_state(self, state: dict[str, Any]) -> int:
        """The batch of a saved state. Raises DataError, naming what differs, if this stream has other tokens before it.

        Segments that begin at that batch or later may be anything.
        """
        own = self.state(0)
        missing = sorted(own.keys() - state.keys())
        if missing or state["version"] != _STATE_VERSION:
            what = f"{', '.join(missing)} missing" if missing else f"version {state['version']}"
            raise DataError(f"data state: {what}; the checkpoint is from another version, start a new run")
        batch = state["batch"]
        if type(batch) is not int or batch < 0:
            raise DataError(f"data state: batch {batch!r}; must be a count, use an older checkpoint")
        own = self.state(batch)
        differing = [key for key in own if state[key] != own[key]]
        if differing:
            shown = "; ".join(f"{key} was {str(state[key])[:16]}, is {str(own[key])[:16]}" for key in differing)
            raise DataError(f"data state: {shown}; {_remedy(state)}")
        return batch


def one_segment(stream: TokenStream, global_batch_size: int) -> SegmentedStream:
    """A run of one segment, as many whole batches as `stream` was planned for."""
    planned = stream.total // global_batch_size
    return SegmentedStream(
        [Segment(first_batch=0, planned_batches=planned, global_batch_size=global_batch_size, stream=stream)]
    )


def _remedy(state: dict[str, Any]) -> str:
    """How to have the first batches as they were, and other data after them."""
    where = f"data.segments[{state['segment'] - 1}].planned_batches" if state["segment"] else "data.planned_batches"
    return (
        f"the {state['batch']} batches that were read would be others; give the data options that the run had, with "
        f"{where}={state['planned_batches']}, and append what shall change: "
        f"'data.segments=[..., {{from_batch: {state['batch']}, ...}}]', or start a new run"
    )


def _plan_segment(
    wanted: SegmentOptions, consumed: Mapping[str, int], seed: int, shuffle_block_tokens: int
) -> tuple[Segment, list[str]]:
    """The segment and the notes of its quotas."""
    manifest = wanted.corpus.manifest
    plan = quotas_for(
        manifest,
        wanted.planned_batches * wanted.global_batch_size,
        sequence_length=wanted.sequence_length,
        text_share=wanted.text_share,
        shares=wanted.shares,
        max_repeats=wanted.max_repeats,
        shuffle_block_tokens=shuffle_block_tokens,
        consumed=consumed,
    )
    stream = TokenStream(
        wanted.corpus,
        plan.mixture(),
        wanted.sequence_length,
        seed,
        shuffle_block_tokens=shuffle_block_tokens,
        cursors=[consumed.get(name, 0) for name in manifest.names],
    )
    segment = Segment(
        first_batch=wanted.first_batch,
        planned_batches=wanted.planned_batches,
        global_batch_size=wanted.global_batch_size,
        stream=stream,
    )
    return segment, plan.notes


def _repeat_notes(segment: Segment, wanted: SegmentOptions, end: int) -> list[str]:
    """Sources that a segment repeats more than it may because it goes on behind its plan, to batch `end`."""
    if end <= segment.first_batch + segment.planned_batches:
        return []
    cursors = segment.stream.cursors_at(segment.position(end))
    repeats = [epochs.epochs_of(tokens) for epochs, tokens in zip(segment.stream.epochs, cursors, strict=True)]
    return [
        f"{name}: repeated {repeated:.2f} times at batch {end}, more than max_repeats={wanted.max_repeats:g}, as the "
        f"segment goes on behind its {wanted.planned_batches} planned batches"
        for name, repeated in zip(segment.stream.mixture.names, repeats, strict=True)
        if repeated > wanted.max_repeats
    ]


def _check_same_sources(options: Sequence[SegmentOptions]) -> None:
    """A source is the same tokens in every corpus that has its name, and every corpus has the same tokenizer."""
    known: dict[str, tuple[SourceInfo, Corpus]] = {}
    for number, wanted in enumerate(options):
        first, corpus = options[0].corpus, wanted.corpus
        if corpus.manifest.tokenizer_hash != first.manifest.tokenizer_hash:
            raise DataError(
                f"data.segments[{number - 1}].corpus_dir={corpus.location}: has another tokenizer than "
                f"{first.location}; build it with tokenizer_path={first.location}/tokenizer.json"
            )
        for source in corpus.manifest.sources:
            other, home = known.setdefault(source.name, (source, corpus))
            if _identity(other) != _identity(source):
                raise DataError(
                    f"data.segments[{number - 1}].corpus_dir={corpus.location}: its source {source.name!r} is not "
                    f"that of {home.location}; a corpus that goes on with a run keeps the sources it had and adds "
                    "others: give new data another name"
                )


def _identity(source: SourceInfo) -> tuple[object, ...]:
    """What makes the tokens of a source; where its shards lie is no part of it."""
    return source.kind, *(
        [(shard.num_tokens, shard.checksum) for shard in split.shards] for split in source.training_variants
    )
