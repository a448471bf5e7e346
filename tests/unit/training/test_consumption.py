"""Tokens by source: what the steps that were made have read, whatever was refused or undone."""

from collections import Counter

import numpy as np
import pytest
import torch

from loopcoder_train.config import GuardsConfig, OnBadStep
from loopcoder_train.model.counts import attention_pairs
from loopcoder_train.training.bad_steps import BadStepHook, TrainingDivergedError
from loopcoder_train.training.consumption import ConsumptionHook, side_tokens, sum_of_row_hashes
from loopcoder_train.training.loop import Hook, Run, fit
from loopcoder_train.training.resume import RunSnapshot
from loopcoder_train.training.state import TrainingState
from loopcoder_train.training.step_history import StepHistory
from tests.unit.training.fakes import FakeEngine, NumpyBatch

# Two segments: other sources, other sequence length, other batch size.
NAMES = {0: ["prose", "python"], 1: ["rust", "prose", "python"]}
SHAPES = {0: (4, 8), 1: (6, 16)}
CHANGE = 5


def segment(batch: int) -> int:
    return int(batch >= CHANGE)


def micro_batches(batch: int) -> list[NumpyBatch]:
    """The batch in two halves, its sources a function of its number."""
    rows, length = SHAPES[segment(batch)]
    random = np.random.default_rng(batch)
    ids = random.integers(0, 32, (rows, length))
    sources = random.integers(0, len(NAMES[segment(batch)]), rows).astype(np.int32)
    half = rows // 2
    return [
        NumpyBatch(ids[part], ids[part], np.zeros_like(ids[part]), sources[part])
        for part in (slice(0, half), slice(half, rows))
    ]


def expected(batches: list[int]) -> dict[str, int]:
    counts = Counter()
    for batch in batches:
        for part in micro_batches(batch):
            for source in part.source_ids:
                counts[NAMES[segment(batch)][source]] += SHAPES[segment(batch)][1]
    return dict(counts)


def batch_tokens(batch: int) -> int:
    rows, length = SHAPES[segment(batch)]
    return rows * length


def run_of(tmp_path, engine: FakeEngine, num_steps: int) -> Run:
    data = (micro_batches(batch) for batch in range(100))
    return Run(tmp_path, engine, data, lambda tokens: 0.01, num_steps=num_steps, batch_tokens=batch_tokens)


def test_sources_are_counted_by_name_over_segments(tmp_path):
    hook = ConsumptionHook(lambda batch: NAMES[segment(batch)], window_left=3)
    state = fit(run_of(tmp_path, FakeEngine(), 9), [hook])
    pairs = [attention_pairs(part.document_ids, 3) for batch in range(9) for part in micro_batches(batch)]
    assert (state.causal_pairs, state.window_pairs) == (sum(p.causal for p in pairs), sum(p.window for p in pairs))
    assert state.source_tokens == expected(list(range(9)))
    assert sum(state.source_tokens.values()) == state.tokens == 5 * 32 + 4 * 96


def test_refused_and_undone_steps_are_not_counted(tmp_path):
    """Batch 2 is skipped; batch 6 goes back to the checkpoint of step 3."""
    saved: dict[str, RunSnapshot] = {}

    class Saving(Hook):
        def after_step(self, run: Run, step) -> None:
            if step.number == 3 and not saved:
                training = TrainingState.from_json(run.state.to_json())
                saved["it"] = RunSnapshot(training, {}, {}, {}, {}, run.history.to_json())

    guards = GuardsConfig(nonfinite=OnBadStep.rewind)
    engine = FakeEngine(losses={3: float("nan"), 7: float("nan")})
    hooks = [
        BadStepHook(guards, last_saved=lambda run: 3 if saved else run.state.step, load=lambda: saved["it"]),
        ConsumptionHook(lambda batch: NAMES[segment(batch)], window_left=3),
        Saving(),
    ]
    state = fit(run_of(tmp_path, engine, 6), hooks)
    kept = [0, 1, 3, 7, 8, 9]
    assert state.batches == 10 and state.discarded_batches == 4
    assert state.source_tokens == expected(kept)
    assert saved["it"].training.source_tokens == expected(kept[:3]), "the checkpoint must not change with the run"


def test_what_is_usual_is_learnt_anew_in_every_segment(tmp_path):
    """A loss that is a spike among the old data's, and would end the run, is none where the data has changed."""
    guards = GuardsConfig(spike_warmup_steps=3, history_steps=8)

    def discarded(segment_of) -> int:
        losses = {number: 1.0 + 0.001 * number for number in range(1, CHANGE + 1)} | {
            CHANGE + 1: 50.0,
            CHANGE + 2: 50.1,
        }
        hook = BadStepHook(guards, last_saved=lambda run: 0, load=lambda: None, segment_of=segment_of)
        run = run_of(tmp_path, FakeEngine(losses=losses), CHANGE + 2)
        fit(run, [hook])
        return run.state.discarded_batches

    assert discarded(segment) == 0
    with pytest.raises(TrainingDivergedError):
        discarded(lambda batch: 0)


def test_a_history_remembers_its_segment():
    history = StepHistory()
    history.enter_segment(2)
    history.keep(1.0, 1.0)
    again = StepHistory.from_json(history.to_json(), 8)
    again.enter_segment(2)
    assert list(again.losses) == [1.0]
    again.enter_segment(3)
    assert not again.losses and not again.grad_norms


def test_sides():
    counts = {"prose": 5, "python": 7, "rust": 1}
    kinds = {"prose": "text", "python": "code", "rust": "code", "unused": "text"}
    assert side_tokens(counts, kinds) == {"text_tokens": 5, "code_tokens": 8}


def digest_of(tmp_path, batches: list[list[NumpyBatch]]) -> str:
    run = run_of(tmp_path, FakeEngine(), len(batches))
    run.data = iter(batches)
    return fit(run, [ConsumptionHook(lambda batch: NAMES[segment(batch)], window_left=3)]).data_digest


def test_the_digest_tells_batches_apart_and_not_how_they_are_cut(tmp_path):
    batches = [micro_batches(batch) for batch in range(4)]
    digest = digest_of(tmp_path, batches)
    together = [
        NumpyBatch(*(np.concatenate([getattr(a, name), getattr(b, name)]) for name in NumpyBatch.__annotations__))
        for a, b in batches
    ]
    assert digest_of(tmp_path, [[batch] for batch in together]) == digest
    assert digest_of(tmp_path, [parts[::-1] for parts in batches]) == digest
    assert digest_of(tmp_path, [batches[1], batches[0], *batches[2:]]) != digest, "the order of batches counts"
    assert digest_of(tmp_path, batches[:3]) != digest


@pytest.mark.parametrize("name", ["input_ids", "labels", "document_ids"])
def test_one_changed_number_changes_the_digest(name):
    ids = np.arange(24).reshape(2, 12)
    changed = {key: ids.copy() for key in ("input_ids", "labels")} | {"document_ids": np.zeros_like(ids)}
    whole = sum_of_row_hashes(NumpyBatch(**changed, source_ids=np.zeros(2)))
    changed[name][1, 5:] += 1  # of documents: another begins there
    assert sum_of_row_hashes(NumpyBatch(**changed, source_ids=np.zeros(2))) != whole
    trades_places = {key: value[::-1] for key, value in changed.items()}
    assert sum_of_row_hashes(NumpyBatch(**trades_places, source_ids=np.zeros(2))) != whole


def test_ranks_add_up_to_one_digest(tmp_path):
    """Each of two ranks holds half of the batch, and the sum over ranks is that of one rank with all of it."""

    class OneOfTwo(FakeEngine):
        def sum_over_data_parallel(self, tensor):
            return tensor + self.others.pop(0)

    engine = OneOfTwo()
    halves = [micro_batches(batch) for batch in range(3)]
    engine.others = []
    for _, other in halves:
        pairs, rows = attention_pairs(other.document_ids, 3), np.bincount(other.source_ids, minlength=2) * 8
        values = [*rows, pairs.causal, pairs.window, int(sum_of_row_hashes(other))]
        engine.others.append(torch.tensor(values, dtype=torch.int64))
    run = run_of(tmp_path, engine, 3)
    run.data = iter([[own] for own, _ in halves])
    state = fit(run, [ConsumptionHook(lambda batch: NAMES[segment(batch)], window_left=3)])
    assert state.data_digest == digest_of(tmp_path, halves)
    assert state.source_tokens == expected([0, 1, 2])
