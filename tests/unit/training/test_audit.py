"""The audit: right about any history of skips, rewinds and crashes, and it feels a single token."""

import copy
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.manifest import Corpus, Manifest, SourceInfo, SplitInfo
from data_pipeline.segments import SegmentedStream, SegmentOptions
from loopcoder_train.training.audit import Discarded, audit_run
from loopcoder_train.training.bad_steps import REWOUND, SKIPPED
from loopcoder_train.training.resume import RunSnapshot
from loopcoder_train.training.state import TrainingState


def stream() -> SegmentedStream:
    """Two segments over sources that exist in the manifest only."""
    kinds = {"prose": "text", "notes": "text", "python": "code", "c": "code", "sql": "code"}
    sources = [
        SourceInfo(name=name, kind=kind, language=name, train=SplitInfo(tokens=10_000)) for name, kind in kinds.items()
    ]
    manifest = Manifest(
        sources=sources, tokenizer_hash="0" * 64, tokenizer_file_sha256="0" * 64, vocab_size=100, end_of_document_id=0,
        dtype="uint16", block_tokens=16,
    )  # fmt: skip
    corpus = Corpus(Path("nowhere"), manifest)
    first = SegmentOptions(
        first_batch=0, planned_batches=20, corpus=corpus, sequence_length=10, global_batch_size=6, shares={"c": 0.3}
    )
    second = replace(first, first_batch=7, sequence_length=25, global_batch_size=4, text_share=0.3)
    return SegmentedStream.plan([first, second], seed=0, shuffle_block_tokens=50)


STREAM = stream()


def tokens_of_batch(batch: int) -> Counter:
    """Sequence by sequence, as a reader sees them."""
    segment = STREAM.segments[STREAM.segment_number(batch)]
    first = segment.position(batch)
    found = Counter()
    for position in range(first, first + segment.global_batch_size):
        source, _ = segment.stream.mixture.lookup(position)
        found[segment.stream.mixture.names[source]] += segment.stream.sequence_length
    return found


class History:
    """A run that is told what happens; writes records and checkpoints as training does."""

    def __init__(self) -> None:
        self.records: list[dict] = []
        self.saved: dict[int, tuple[RunSnapshot, list[int]]] = {}
        self.state, self.kept, self.ledger = TrainingState(), [], []
        self.event("started", tokens=0, batches=0)

    def event(self, name: str, **details: object) -> None:
        self.records.append({"kind": "event", "step": self.state.step, "event": name, **details})

    def step(self) -> None:
        batch = self.state.batches
        self.kept.append(batch)
        self.state.step += 1
        self._count()
        sides = Counter()
        for name, tokens in self.state.source_tokens.items():
            sides["text" if name in ("prose", "notes") else "code"] += tokens
        self.records.append(
            {"kind": "train", "step": self.state.step, "batches": self.state.batches, "tokens": self.state.tokens,
             "text_tokens": sides["text"], "code_tokens": sides["code"]}
        )  # fmt: skip

    def _count(self) -> None:
        total = sum((tokens_of_batch(batch) for batch in self.kept), Counter())
        self.state.source_tokens, self.state.tokens = dict(total), sum(total.values())

    def skip(self) -> None:
        bad = {"batch": self.state.batches, "back_to": None}
        self.state.discarded_batches += 1
        self.ledger.append(bad)
        self.event(SKIPPED, bad_step=bad)

    def save(self) -> None:
        content = RunSnapshot(
            training=copy.deepcopy(self.state), engine={}, stream=STREAM.state(self.state.batches), loggers={},
            options={}, history={"ledger": list(self.ledger)},
        )  # fmt: skip
        self.saved[self.state.step] = content, list(self.kept)

    def rewind(self) -> None:
        if not self.saved or max(self.saved) == self.state.step:
            self.skip()  # as training does: there is nothing to go back to
            return
        content, kept = self.saved[max(self.saved)]
        bad = {"batch": self.state.batches, "back_to": content.training.step}
        self.state.discarded_batches += 1
        self.state, self.kept = self.state.gone_back_to(content.training), list(kept)
        self.ledger.append(bad)
        self.event(REWOUND, bad_step=bad)

    def crash(self) -> None:
        if not self.saved:
            self.state, self.kept, self.ledger = TrainingState(), [], []
            self.event("started", tokens=0, batches=0)
            return
        content, kept = self.saved[max(self.saved)]
        self.state, self.kept = copy.deepcopy(content.training), list(kept)
        self.ledger = list(content.history["ledger"])
        self.event("resumed", tokens=self.state.tokens, batches=self.state.batches)

    def audit(self, other: SegmentedStream | None = None):
        checkpoints = [(step, content) for step, (content, _) in sorted(self.saved.items())]
        return audit_run(other or STREAM, self.records, checkpoints)


def history(acts: list[str]) -> History:
    run = History()
    for act in acts:
        getattr(run, act)()
    return run


acts = st.lists(st.sampled_from(["step", "step", "step", "save", "skip", "rewind", "crash"]), min_size=1, max_size=40)


@given(acts)
@settings(max_examples=150, deadline=None)
def test_it_matches_after_any_history(acts):
    run = history(acts)
    audit = run.audit()
    assert audit.differences == []
    if run.saved:
        step = max(run.saved)
        content, kept = run.saved[step]
        assert {name: read for name, (_, read) in audit.tokens.items() if read} == content.training.source_tokens
        assert audit.batches == content.training.batches and audit.batches - audit.discarded == len(kept)


ACTS = ["step"] * 3 + [
    "save",
    "step",
    "skip",
    "step",
    "rewind",
    "step",
    "step",
    "save",
    "step",
    "crash",
    "step",
    "step",
]


def test_a_single_token_is_felt():
    run = history(ACTS)
    assert run.audit().differences == [] and run.audit().checkpoints == 2
    last = run.records[-1]
    for key, said in (("tokens", "tokens="), ("text_tokens", "text_tokens="), ("code_tokens", "code_tokens=")):
        last[key] += 1
        (difference,) = run.audit().differences
        assert difference.startswith(f"step {last['step']}: metrics.jsonl has {said}{last[key]:,}, the stream gives")
        last[key] -= 1
    last["batches"] += 1
    assert "batches were read and" in run.audit().differences[0]
    last["batches"] -= 1
    training = run.saved[max(run.saved)][0].training
    training.source_tokens["python"] += 1
    training.source_tokens["c"] -= 1
    differences = run.audit().differences
    assert len(differences) == 2 and "tokens of python, the stream gives" in differences[0]


def test_a_forgotten_event_another_mixture_and_another_ledger_are_felt():
    run = history(ACTS)
    other = stream()
    other.segments[0].stream.seed = 1  # the same counts: only the data position knows
    assert [line for line in run.audit(other).differences if "seed was 0, is 1" in line]
    run = history(["step", "skip", "step"])
    run.records = [record for record in run.records if record.get("event") != SKIPPED]
    assert "batches were read and" in run.audit().differences[0]
    run = history(ACTS)
    content, _ = run.saved[max(run.saved)]
    content.history["ledger"].pop()
    assert any("its ledger" in line for line in run.audit().differences)
    content.stream["batch"] -= 1
    assert any("position was" in line for line in run.audit().differences)


def test_records_without_counts_are_said():
    run = history(["step"])
    del run.records[-1]["text_tokens"]
    assert run.audit().differences == ["step 1: metrics.jsonl has no counts by side; another version wrote it"]


@pytest.mark.parametrize(
    ("discarded", "step", "batches"),
    [
        (Discarded(), 5, 5),
        (Discarded(((2, 4),)), 2, 2),
        (Discarded(((2, 4),)), 3, 5),
        (Discarded(((0, 1), (3, 9))), 3, 10),
    ],
)
def test_batches_of_a_step(discarded, step, batches):
    assert discarded.batches_of(step) == batches
