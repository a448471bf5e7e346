"""Promises 4 and 5: a run of segments deals nothing anew, and its state knows what was dealt."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipeline.epochs import SourceEpochs
from data_pipeline.errors import DataError
from data_pipeline.loader import StreamLoader
from data_pipeline.manifest import Corpus, SourceInfo
from data_pipeline.segments import SegmentedStream, SegmentOptions, one_segment

BLOCK, SEED = 16, 5


def options(corpus, first_batch=0, planned_batches=10, **changes) -> SegmentOptions:
    wanted = {"sequence_length": 24, "global_batch_size": 6, "max_repeats": 100.0, **changes}
    return SegmentOptions(first_batch=first_batch, planned_batches=planned_batches, corpus=corpus, **wanted)


def plan(*segments, seed=SEED, block=BLOCK) -> SegmentedStream:
    return SegmentedStream.plan(segments, seed=seed, shuffle_block_tokens=block)


class Sources:
    """The streams of all sources of a corpus, token by token, each with a cursor: the yardstick."""

    def __init__(self) -> None:
        self.cursors: dict[str, int] = {}
        self._streams: dict[str, list[int]] = {}

    def take(self, corpus: Corpus, name: str, count: int) -> list[int]:
        index = corpus.manifest.source_index(name)
        if name not in self._streams:
            epochs, ids = SourceEpochs(corpus.manifest.sources[index], BLOCK, SEED), []
            for offset in range(0, 40 * BLOCK * 100, BLOCK):
                place = epochs.place(offset)
                ids += corpus.tokens(index, "train", place.variant).read(place.token, place.token + BLOCK).tolist()
            self._streams[name] = ids
        start = self.cursors.get(name, 0)
        self.cursors[name] = start + count
        return self._streams[name][start : start + count]


@pytest.fixture
def larger_corpus(make_corpus):
    """`small_corpus` and two sources more, with its shards in another order of sources."""
    random = np.random.default_rng(0)
    lengths = {name: random.integers(1, 41, size=count).tolist() for name, count in _COUNTS.items()}
    kinds = {"prose": "text", "notes": "text", "papers": "text"}
    names = ["rust", "sql", "papers", "python", "prose", "c", "notes"]
    return make_corpus({name: (kinds.get(name, "code"), lengths[name]) for name in names}, heldout=[5], folder="larger")


_COUNTS = {"prose": 30, "notes": 12, "python": 25, "c": 11, "sql": 7, "rust": 20, "papers": 9}


def test_every_row_is_what_the_cursors_of_the_sources_say(small_corpus, larger_corpus):
    """Re-weighted, lengthened, with a larger corpus and larger batches, annealed on two sources, and cut short."""
    run = plan(
        options(small_corpus, 0, 20),
        options(small_corpus, 7, 10, shares={"python": 0.8}),
        options(small_corpus, 12, 30, sequence_length=50, global_batch_size=4, text_share=0.2),
        options(larger_corpus, 15, 5),
        options(larger_corpus, 22, 5, shares={"rust": 1, "sql": 0, "python": 0, "c": 0}, text_share=0),
    )
    sources, tokens = Sources(), 0
    for batch in range(30):
        segment = run.segments[run.segment_number(batch)]
        corpus, S = segment.stream.corpus, segment.stream.sequence_length
        assert run.tokens(batch) == tokens == sum(run.consumed_tokens(batch).values())
        for name, consumed in run.consumed_tokens(batch).items():
            assert consumed == sources.cursors.get(name, 0) == run.count(name, batch)
        rows = run.read(batch)
        assert len(rows) == segment.global_batch_size
        for source, ids in zip(rows.source_ids, rows.input_ids.tolist(), strict=True):
            assert ids == sources.take(corpus, corpus.manifest.names[source], S)
        tokens += run.batch_tokens(batch)
    assert sources.cursors["rust"] > 0 and sources.cursors["papers"] > 0
    assert {name for name, count in run.consumed_tokens(30).items() if count > run.consumed_tokens(22)[name]} == {
        "rust"
    }


def test_parts_of_a_batch_are_the_batch(small_corpus):
    run = plan(options(small_corpus), options(small_corpus, 3, global_batch_size=4))
    for batch in (2, 3):
        whole = run.read(batch).input_ids
        for parts in (1, 2):
            cut = np.concatenate([run.read(batch, part, parts).input_ids for part in range(parts)])
            np.testing.assert_array_equal(cut, whole)
    with pytest.raises(DataError, match="4 sequences cannot be cut into 3 parts"):
        run.read(3, 0, 3)


def test_the_loader_crosses_segments(small_corpus, larger_corpus):
    run = plan(options(small_corpus), options(larger_corpus, 3, global_batch_size=4, sequence_length=10))
    loaders = [
        StreamLoader(run, start_step=1, num_steps=6, micro_batch_size=1, data_parallel_rank=rank, data_parallel_size=2)
        for rank in range(2)
    ]
    for batch, (first, second) in enumerate(zip(*loaders, strict=True), start=1):
        ids = np.concatenate([micro.input_ids for micro in (*first, *second)])
        np.testing.assert_array_equal(ids, run.read(batch).input_ids)
    assert batch == 6
    for loader in loaders:
        loader.close()
    with pytest.raises(DataError, match=r"global_batch_size=4: must be a multiple of micro_batch_size 1 x .* 3 = 3"):
        StreamLoader(run, start_step=0, num_steps=1, micro_batch_size=1, data_parallel_size=3)


shares = st.dictionaries(st.sampled_from(["python", "c"]), st.sampled_from([0.1, 0.25, 0.4]), max_size=2)
segment = st.fixed_dictionaries(
    {
        "length": st.integers(1, 15),
        "planned_batches": st.integers(1, 30),
        "shares": shares,
        "text_share": st.sampled_from([0.0, 0.5, 0.7]),
        "sequence_length": st.sampled_from([8, 24, 40]),
        "global_batch_size": st.sampled_from([2, 6]),
    }
)


@given(st.lists(segment, min_size=1, max_size=5), st.lists(segment, min_size=1, max_size=3), st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_appended_after_a_batch_changes_nothing_before_it(small_corpus, first, later, data):
    """Consumed tokens only grow, by whole batches, and the state of every batch before the change fits both runs."""
    begins, at = [], 0
    for wanted in first:
        begins.append(at)
        at += wanted["length"]

    def build(wanted, start):
        changes = {key: value for key, value in wanted.items() if key != "length"}
        return options(small_corpus, start, **changes)

    short = [build(wanted, start) for wanted, start in zip(first, begins, strict=True)]
    cut = data.draw(st.integers(begins[-1] + 1, begins[-1] + 20))  # inside, at the end of, or behind the plan
    appended, at = [], cut
    for wanted in later:
        appended.append(build(wanted, at))
        at += wanted["length"]
    before, after = plan(*short), plan(*short, *appended)
    batch = data.draw(st.integers(0, cut))
    assert before.consumed_tokens(batch) == after.consumed_tokens(batch)
    assert after.check_state(json.loads(json.dumps(before.state(batch)))) == batch
    assert before.check_state(after.state(batch)) == batch
    if batch < cut:
        np.testing.assert_array_equal(before.read(batch).input_ids, after.read(batch).input_ids)
    growth = [after.consumed_tokens(b) for b in range(at + 2)]
    for b, (now, then) in enumerate(itertools.pairwise(growth)):
        assert all(then[name] >= now[name] for name in now)
        assert sum(then.values()) - sum(now.values()) == after.batch_tokens(b)


def test_repeats_are_counted_over_all_segments(small_corpus):
    """sql has few tokens: what the first segment used of its cap, the second has not."""
    epochs = SourceEpochs(small_corpus.manifest.sources[4], BLOCK)
    wanted = {"shares": {"sql": 0.5}, "sequence_length": 8, "max_repeats": 3.0}
    first = options(small_corpus, 0, 12, **wanted)
    run = plan(first, options(small_corpus, 12, 60, **wanted))
    assert run.count("sql", 12) > 0
    left = epochs.tokens_of(3) - run.count("sql", 12)
    assert run.segments[1].stream.mixture.quotas[4] == left // 8
    assert any(note.startswith("from batch 12: sql: capped at 3 repeats") for note in run.notes)
    with pytest.raises(DataError, match=r"text tokens after [\d,]+ consumed before; .* still with repeats"):
        plan(first, options(small_corpus, 12, 600, **wanted))


def test_going_on_behind_the_plan_past_the_cap_is_noted(small_corpus):
    wanted = {"shares": {"sql": 0.9}, "text_share": 0.0, "max_repeats": 2.0}
    run = plan(options(small_corpus, 0, 4, **wanted), options(small_corpus, 12, 1))
    (note,) = [note for note in run.notes if "behind its 4 planned batches" in note]
    assert note.startswith("sql: repeated ") and "at batch 12, more than max_repeats=2" in note


def test_the_state_is_small_and_the_same_whatever_comes_later(small_corpus, larger_corpus):
    segments = [options(small_corpus, 10 * number, 10) for number in range(40)]
    assert len(json.dumps(plan(*segments).state(395))) < 1024
    short = plan(options(small_corpus, 0, 10))
    longer = plan(options(small_corpus, 0, 10), options(larger_corpus, 10, 5, sequence_length=48))
    assert short.state(10) == longer.state(10)
    assert short.state(10)["position"] == 60 and short.state(10)["segment"] == 0
    assert longer.state(11)["position"] == 6 and longer.state(11)["segment"] == 1


def test_the_state_refuses_every_other_past_and_names_it(small_corpus, larger_corpus):
    def run(first=None, second=None, **options_of_plan):
        return plan(
            options(small_corpus, 0, 10, **(first or {})),
            options(small_corpus, 8, 10, **(second or {})),
            **options_of_plan,
        )

    state = run().state(9)
    for changed, key in (
        (run({"shares": {"python": 0.9}}), "mixture_hash was"),
        (run({"shares": {"python": 0.9}}), "earlier_segments was"),
        (run({"sequence_length": 25}), "earlier_segments was"),
        (run({"global_batch_size": 12}), "earlier_segments was"),
        (run(None, {"shares": {"python": 0.9}}), "mixture_hash was"),
        (run(None, {"sequence_length": 25}), "sequence_length was 24, is 25"),
        (run(None, {"global_batch_size": 12}), "global_batch_size was 6, is 12"),
        (run(seed=6), "seed was 5, is 6"),
        (run(block=32), "shuffle_block_tokens was 16, is 32"),
        (plan(options(small_corpus, 0, 10), options(small_corpus, 7, 10)), "first_batch was 8, is 7"),
        (plan(options(small_corpus, 0, 10)), "segment was 1, is 0"),
        (plan(options(small_corpus, 0, 10), options(larger_corpus, 8, 10)), "manifest_hash was"),
        (plan(options(small_corpus, 0, 10), options(small_corpus, 8, 11)), "planned_batches was 10, is 11"),
    ):
        with pytest.raises(DataError, match=key) as refusal:
            changed.check_state(state)
        assert "data.segments[0].planned_batches=10" in str(refusal.value)
        assert "{from_batch: 9, ...}" in str(refusal.value)
        assert "\n" not in str(refusal.value)
    with pytest.raises(DataError, match=r"tokenizer_hash was"):
        other = Corpus(small_corpus.directory, dataclasses.replace(small_corpus.manifest, tokenizer_hash="0" * 64))
        plan(options(other, 0, 10), options(other, 8, 10)).check_state(state)
    with pytest.raises(DataError, match="seed missing; the checkpoint is from another version"):
        run().check_state({key: value for key, value in state.items() if key != "seed"})
    with pytest.raises(DataError, match="version 1; the checkpoint is from another version"):
        run().check_state({**state, "version": 1})
    with pytest.raises(DataError, match="batch 'x'; must be a count"):
        run().check_state({**state, "batch": "x"})
    with pytest.raises(DataError, match="position was 7, is 6"):
        run().check_state({**state, "position": 7})


def test_a_corpus_that_goes_on_with_a_run_keeps_its_sources(small_corpus, make_corpus):
    other = make_corpus({"prose": ("text", [40] * 30), "python": ("code", [40] * 30)}, folder="other")
    with pytest.raises(
        DataError, match=r"data.segments\[0\].corpus_dir=.*: its source 'prose' is not that of .*corpus;"
    ):
        plan(options(small_corpus), options(other, 5))
    manifest = dataclasses.replace(small_corpus.manifest, tokenizer_hash="0" * 64)
    with pytest.raises(DataError, match=r"has another tokenizer than .*corpus; build it with tokenizer_path="):
        plan(options(small_corpus), options(Corpus(small_corpus.directory, manifest), 5))
    more = [dataclasses.replace(source, variants=[source.train]) for source in small_corpus.manifest.sources]
    manifest = dataclasses.replace(small_corpus.manifest, sources=more)
    with pytest.raises(DataError, match="its source 'prose' is not that"):
        plan(options(small_corpus), options(Corpus(small_corpus.directory, manifest), 5))


@pytest.mark.parametrize("begins", [(1,), (0, 5, 5), (0, 6, 5), ()])
def test_segments_follow_one_another(small_corpus, begins):
    segments = [options(small_corpus, begin) for begin in begins]
    with pytest.raises(DataError, match="they begin at batches"):
        plan(*segments)


def test_what_a_run_can_be_asked(small_corpus):
    run = plan(options(small_corpus))
    assert isinstance(run.sources()["prose"], SourceInfo)
    with pytest.raises(DataError, match="batch -1: must be >= 0"):
        run.read(-1)
    assert one_segment(run.segments[0].stream, 6).segments == run.segments
