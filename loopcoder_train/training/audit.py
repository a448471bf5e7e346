"""Does what a run recorded agree with what its token stream must have given it? To the token, or it says where not.

The journey: the events of `metrics.jsonl` tell which batches were discarded; the stream tells, from batch numbers
alone, the tokens of every source in the batches that were kept. On the other side stand the counts that training made
of the rows that it really read (training/consumption.py): by side in every train record, by source in every
checkpoint. The two counts share nothing but the corpus and run.yaml.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from data_pipeline.errors import DataError
from data_pipeline.segments import SegmentedStream
from loopcoder_train.training.bad_steps import REWOUND, SKIPPED
from loopcoder_train.training.consumption import side_tokens
from loopcoder_train.training.metrics import Record
from loopcoder_train.training.resume import RunSnapshot


@dataclass(frozen=True, slots=True)
class Discarded:
    """Batches that were read and are no part of the weights: ranges [begin, end), growing and apart."""

    ranges: tuple[tuple[int, int], ...] = ()

    def skipped(self, batch: int) -> "Discarded":
        """And this one, which comes after all the others."""
        return Discarded((*self.ranges, (batch, batch + 1)))

    def rewound(self, batch: int, back_to: int) -> "Discarded":
        """And all up to `batch` that came after the first `back_to` kept ones."""
        begin = self.batches_of(back_to)
        return Discarded((*self.before(begin).ranges, (begin, batch + 1)))

    def before(self, num_batches: int) -> "Discarded":
        """Those among the first `num_batches` batches."""
        return Discarded(tuple((a, min(b, num_batches)) for a, b in self.ranges if a < num_batches))

    def batches_of(self, step: int) -> int:
        """How many batches had been read, at least, when `step` of them were kept."""
        batches = step
        for begin, end in self.ranges:
            if begin < batches:
                batches += end - begin
        return batches

    @property
    def count(self) -> int:
        """How many they are."""
        return sum(end - begin for begin, end in self.ranges)


def after_event(discarded: Discarded, event: Record) -> Discarded:
    """What is discarded after an event of `metrics.jsonl` or, as {"event", "bad_step"}, an entry of the ledger."""
    if event["event"] in ("started", "resumed") and "batches" in event:
        return discarded.before(event["batches"])  # a crash undid the rest; it is decided anew
    if event["event"] == SKIPPED:
        return discarded.skipped(event["bad_step"]["batch"])
    if event["event"] == REWOUND:
        return discarded.rewound(event["bad_step"]["batch"], event["bad_step"]["back_to"])
    return discarded


def kept_tokens(stream: SegmentedStream, num_batches: int, discarded: Discarded) -> dict[str, int]:
    """Tokens of every source in the first `num_batches` batches without the discarded ones: from positions alone."""
    kept = stream.consumed_tokens(num_batches)
    for begin, end in discarded.before(num_batches).ranges:
        first, last = stream.consumed_tokens(begin), stream.consumed_tokens(end)
        kept = {name: tokens - last[name] + first[name] for name, tokens in kept.items()}
    return kept


@dataclass(slots=True)
class Audit:
    """What was compared, and every difference as one line.

    `tokens`: source -> (recomputed, recorded), at the newest checkpoint; recorded is None where there is none, and the
    others are those of the last train record.
    """

    step: int = 0
    batches: int = 0
    discarded: int = 0
    records: int = 0
    checkpoints: int = 0
    tokens: dict[str, tuple[int, int | None]] = field(default_factory=dict)
    differences: list[str] = field(default_factory=list)


def audit_run(
    stream: SegmentedStream, records: Iterable[Record], checkpoints: Iterable[tuple[int, RunSnapshot]]
) -> Audit:
    """Compare all that is left of a run's records and checkpoints (step, content; oldest first) with its stream.

    records: the lines of `metrics.jsonl` in order, those of abandoned attempts included.
    """
    audit, kinds = Audit(), stream.kinds
    for record, discarded in final_train_records(records):
        audit.records += 1
        audit.differences += _check_record(stream, kinds, record, discarded)
        audit.step, audit.batches = record["step"], record.get("batches", 0)
        discarded = discarded.before(audit.batches)
        audit.discarded = discarded.count
    if audit.records:
        kept = kept_tokens(stream, audit.batches, discarded)
        audit.tokens = {name: (tokens, None) for name, tokens in kept.items()}
    for step, snapshot in checkpoints:
        audit.checkpoints += 1
        tokens, differences = _check_checkpoint(stream, step, snapshot)
        audit.differences += differences
        state = snapshot.training
        audit.step, audit.batches, audit.discarded = step, state.batches, state.discarded_batches
        audit.tokens = tokens
    return audit


def final_train_records(records: Iterable[Record]) -> Iterator[tuple[Record, Discarded]]:
    """The train records that the weights of the run are made of, each with the batches that were discarded by then."""
    final: dict[int, tuple[Record, Discarded]] = {}
    discarded = Discarded()
    for record in records:
        if record["kind"] == "train":
            final[record["step"]] = record, discarded
        elif record["kind"] == "event":
            discarded = after_event(discarded, record)
            if record["event"] in ("started", "resumed", REWOUND):
                final = {step: entry for step, entry in final.items() if step <= record["step"]}
    yield from final.values()


def _check_record(stream: SegmentedStream, kinds: dict[str, str], record: Record, discarded: Discarded) -> list[str]:
    step = record["step"]
    if not {"batches", "text_tokens", "code_tokens"} <= record.keys():
        return [f"step {step}: metrics.jsonl has no counts by side; another version wrote it"]
    batches = record["batches"]
    gone = discarded.before(batches).count
    found = []
    if batches - gone != step:
        found.append(f"step {step}: {batches} batches were read and {gone} discarded, which leaves {batches - gone}")
    kept = kept_tokens(stream, batches, discarded)
    expected = {"tokens": sum(kept.values()), **side_tokens(kept, kinds)}
    for key, tokens in expected.items():
        if record[key] != tokens:
            found.append(f"step {step}: metrics.jsonl has {key}={record[key]:,}, the stream gives {tokens:,}")
    return found


def _check_checkpoint(
    stream: SegmentedStream, step: int, snapshot: RunSnapshot
) -> tuple[dict[str, tuple[int, int | None]], list[str]]:
    """source -> (recomputed, recorded), and the differences."""
    state, where, found = snapshot.training, f"checkpoint of step {step}", []
    discarded = Discarded()
    for entry in snapshot.history["ledger"]:
        event = SKIPPED if entry["back_to"] is None else REWOUND
        discarded = after_event(discarded, {"event": event, "bad_step": entry})
    if (discarded.count, state.step) != (state.discarded_batches, step):
        found.append(
            f"{where}: holds step {state.step} and {state.discarded_batches} discarded batches, its ledger "
            f"{discarded.count}"
        )
    try:
        batch = stream.check_state(snapshot.stream)
        if batch != state.batches:
            found.append(f"{where}: its data stands at batch {batch}, its counters at {state.batches}")
    except DataError as error:
        found.append(f"{where}: {error}")
    kept = kept_tokens(stream, state.batches, discarded)
    names = list(dict.fromkeys([*kept, *state.source_tokens]))
    tokens = {name: (kept.get(name, 0), state.source_tokens.get(name, 0)) for name in names}
    for name, (recomputed, recorded) in tokens.items():
        if recomputed != recorded:
            found.append(f"{where}: has {recorded:,} tokens of {name}, the stream gives {recomputed:,}")
    if sum(kept.values()) != state.tokens:
        found.append(f"{where}: has tokens={state.tokens:,}, the stream gives {sum(kept.values()):,}")
    return tokens, found
