"""Bad steps: the weights never see them, the data goes on behind them, and every attempt decides alike."""

import json
import math
from dataclasses import replace

import pytest
import torch

from data_pipeline.substitutes import SUBSTITUTES_FILE
from loopcoder_train.checkpoint import find_checkpoint
from loopcoder_train.config import CheckpointConfig, GuardsConfig, OnBadStep
from loopcoder_train.training.bad_steps import BadStepHook, TrainingDivergedError, recorded_decisions
from loopcoder_train.training.checkpoint_hook import CheckpointHook
from loopcoder_train.training.evaluate_hook import EvaluateHook
from loopcoder_train.training.log_hook import LogHook
from loopcoder_train.training.loop import Hook, Run, fit
from loopcoder_train.training.metrics import METRICS_FILE, MetricsWriter, read_metrics
from loopcoder_train.training.resume import restore
from loopcoder_train.training.step_history import Cause, StepHistory
from tests.unit.training.fakes import BATCH, SEQUENCE_LENGTH, TINY, FakeEngine, data_from

CPU = torch.device("cpu")
TOKENS_PER_STEP = BATCH * SEQUENCE_LENGTH
NAN, SPIKE = float("nan"), 1e6


class KilledError(Exception):
    pass


class KillAfterBatch(Hook):
    """As kill -9 would: nothing is saved or told any more."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def after_step(self, run, step):
        if run.state.batches == self.batch:
            raise KilledError

    after_bad_step = after_step


def guards(**options) -> GuardsConfig:
    # The losses of the little batches jump about: a spike is what lies far outside.
    defaults = {"history_steps": 4, "spike_warmup_steps": 3, "spike": OnBadStep.ignore, "spike_sigmas": 1000.0}
    return GuardsConfig(**{**defaults, **options})


def train(run_dir, config, *others, losses=None, kill_after=None, num_steps=12, asynchronous=True, every_steps=4):
    """One attempt: resumed from what is in `run_dir`; `others` are hooks in front of the one that saves.

    `losses`: what is measured of some batches instead of the truth, counted from 1.
    """
    run_dir.mkdir(exist_ok=True)
    engine = FakeEngine(losses=losses)

    def load():
        checkpoint = find_checkpoint(run_dir).checkpoint
        return checkpoint and restore(checkpoint, engine, rank=0, world_size=1, device=CPU)

    snapshot = load()
    with MetricsWriter(run_dir / METRICS_FILE) as metrics:
        run = Run(
            run_dir=run_dir,
            engine=engine,
            data=data_from(snapshot.training.batches if snapshot else 0),
            learning_rate=lambda tokens: 1.0 / (10 + tokens / TOKENS_PER_STEP),
            num_steps=num_steps,
            batch_tokens=lambda batch: TOKENS_PER_STEP,
            metrics=metrics,
        )
        run.history = StepHistory(config.history_steps)
        if snapshot:
            run.state, run.history = snapshot.training, StepHistory.from_json(snapshot.history, config.history_steps)
            engine.batches = run.state.batches
            assert snapshot.stream == {"position": run.state.batches * BATCH}
        saving = CheckpointHook(
            CheckpointConfig(every_steps=every_steps, asynchronous=asynchronous),
            CPU,
            stream_state=lambda batches: {"position": batches * BATCH},
            logger_run_ids={},
            options={},
        )
        hooks = [
            BadStepHook(config, last_saved=saving.last_saved, load=load),
            LogHook(TINY, CPU, every_steps=1),
            EvaluateHook(lambda: {"loss": float(engine.weight)}, every_steps=5),
            *([KillAfterBatch(kill_after)] if kill_after else []),
            *others,
            saving,
        ]
        fit(run, hooks)
    return run, engine


def train_losses(run_dir) -> dict[int, float]:
    return {record["step"]: record["loss"] for record in read_metrics(run_dir / METRICS_FILE, ["train"])}


def events(run_dir, name) -> list[dict]:
    return [record for record in read_metrics(run_dir / METRICS_FILE, ["event"]) if record["event"] == name]


def without_batches(discarded, count):
    """The straight run over the batches that were not discarded: what skipping must equal."""
    engine = FakeEngine()
    batches = [batch for batch in range(count) if batch not in discarded]
    data = [next(data_from(batch)) for batch in batches]
    run = Run(
        run_dir=None,
        engine=engine,
        data=iter(data),
        learning_rate=lambda tokens: 1.0 / (10 + tokens / TOKENS_PER_STEP),
        num_steps=len(batches),
        batch_tokens=lambda batch: TOKENS_PER_STEP,
    )
    fit(run, [])
    return engine


def test_a_skipped_step_leaves_weights_moments_and_schedule_as_they_were(tmp_path):
    run, engine = train(tmp_path, guards(), losses={6: NAN, 7: NAN})
    expected = without_batches({5, 6}, 14)
    assert torch.equal(engine.weight, expected.weight) and torch.equal(engine.momentum, expected.momentum)
    assert (run.state.step, run.state.batches, engine.steps) == (12, 14, 12)
    assert run.state.tokens == 12 * TOKENS_PER_STEP and run.state.discarded_batches == 2
    # the batch that was refused and the two after it were tried at the rate of step 6
    assert engine.learning_rates[5] == engine.learning_rates[6] == engine.learning_rates[7]
    assert list(train_losses(tmp_path)) == list(range(1, 13))
    first, second = events(tmp_path, "step_skipped")
    assert first["step"] == 5 and "step 6 was not made: loss=nan" in first["message"]
    assert first["bad_step"]["batch"] == 5 and first["bad_step"]["loss"] is None and second["bad_step"]["batch"] == 6
    saved = find_checkpoint(tmp_path).checkpoint.state
    assert [entry["batch"] for entry in saved["history"]["ledger"]] == [5, 6]


def test_a_spike_is_skipped_and_not_remembered_as_usual(tmp_path):
    run, _ = train(tmp_path, guards(spike=OnBadStep.skip), losses={6: SPIKE})
    assert [entry.batch for entry in run.history.ledger] == [5]
    assert SPIKE not in run.history.losses and SPIKE not in train_losses(tmp_path).values()
    (event,) = events(tmp_path, "step_skipped")
    assert "loss=1e+06 lies" in event["message"] and event["bad_step"]["cause"] == "spike"


def test_spikes_may_be_ignored(tmp_path):
    _, engine = train(tmp_path, guards(), losses={6: SPIKE})
    assert train_losses(tmp_path)[6] == SPIKE and engine.steps == 12 and not events(tmp_path, "step_skipped")


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_rewind_goes_back_and_skips_the_window(tmp_path, asynchronous):
    config = guards(nonfinite=OnBadStep.rewind, history_steps=20)
    run, engine = train(tmp_path, config, losses={7: NAN}, asynchronous=asynchronous)
    expected = without_batches({4, 5, 6}, 15)
    assert torch.equal(engine.weight, expected.weight) and torch.equal(engine.momentum, expected.momentum)
    assert (run.state.step, run.state.batches) == (12, 15)
    (event,) = events(tmp_path, "step_rewound")
    assert event["step"] == 4 and "back to the checkpoint of step 4, 2 step(s) are undone" in event["message"]
    assert event["bad_step"] == {
        "batch": 6, "step": 7, "cause": "nonfinite", "loss": None, "grad_norm": event["bad_step"]["grad_norm"],
        "back_to": 4,
    }  # fmt: skip
    assert list(train_losses(tmp_path)) == list(range(1, 13))
    assert list(run.history.losses) == list(train_losses(tmp_path).values()), "undone steps are no part of the history"
    assert [r["step"] for r in read_metrics(tmp_path / METRICS_FILE, ["evaluation"])] == [5, 10, 12]
    assert run.state.best_step in (5, 10, 12)


def test_undone_steps_are_no_part_of_the_record(tmp_path):
    with pytest.raises(KilledError):
        train(tmp_path, guards(nonfinite=OnBadStep.rewind), losses={7: NAN}, kill_after=7)
    assert list(train_losses(tmp_path)) == [1, 2, 3, 4]
    assert read_metrics(tmp_path / METRICS_FILE, ["evaluation"]) == []


def test_a_rewind_forgets_no_decision_of_the_steps_that_it_undoes(tmp_path):
    config = guards(nonfinite=OnBadStep.rewind, spike=OnBadStep.skip)
    run, _ = train(tmp_path, config, losses={6: SPIKE, 8: NAN})
    assert _places(run) == [(5, 6, None), (7, 7, 4)]


def test_a_rewind_falls_back_over_a_damaged_checkpoint(tmp_path):
    class Damage(Hook):
        def after_step(self, run, step):
            if step.number == 9:
                file = tmp_path / "checkpoints" / "step-00000008" / "tensors-00000-of-00001.safetensors"
                file.write_bytes(file.read_bytes()[:-1] + b"?")

    config = guards(nonfinite=OnBadStep.rewind, max_rewinds=1)
    run, engine = train(tmp_path, config, Damage(), losses={10: NAN, 11: NAN}, asynchronous=False)
    assert _places(run) == [(9, 10, 4), (10, 5, None)], "the second finds nothing to undo"
    assert torch.equal(engine.weight, without_batches({4, 5, 6, 7, 8, 9, 10}, 19).weight)


def test_right_after_a_checkpoint_there_is_nothing_to_go_back_to(tmp_path):
    run, engine = train(tmp_path, guards(nonfinite=OnBadStep.rewind, max_rewinds=0), losses={5: NAN, 6: NAN})
    assert torch.equal(engine.weight, without_batches({4, 5}, 14).weight)
    assert [entry.back_to for entry in run.history.ledger] == [None, None]


STOPS = {
    "stop": (guards(nonfinite=OnBadStep.stop), {6: NAN}, "guards.nonfinite=stop"),
    "in a row": (
        guards(max_bad_steps_in_a_row=2),
        {6: NAN, 7: NAN, 8: NAN},
        "3 bad steps in a row are more than guards.max_bad_steps_in_a_row=2",
    ),
    "in a window": (
        guards(max_bad_steps=2, bad_step_window=6),
        {2: NAN, 4: NAN, 8: NAN, 9: NAN},
        "3 bad steps among 6 batches are more than guards.max_bad_steps=2",
    ),
    "too many rewinds": (
        guards(nonfinite=OnBadStep.rewind, max_rewinds=1),
        {6: NAN, 9: NAN},
        "went back guards.max_rewinds=1 times before",
    ),
    "no checkpoint": (guards(nonfinite=OnBadStep.rewind), {3: NAN}, "no checkpoint was saved yet"),
}


@pytest.mark.parametrize(("config", "losses", "rule"), STOPS.values(), ids=STOPS)
def test_stops_name_the_rule_and_save_nothing(tmp_path, config, losses, rule):
    with pytest.raises(TrainingDivergedError) as stop:
        train(tmp_path, config, losses=losses)
    assert rule in str(stop.value) and "loss=nan" in str(stop.value) and "\n" not in str(stop.value)
    (event,) = events(tmp_path, "diverged")
    assert event["message"] == str(stop.value)
    newest = find_checkpoint(tmp_path).checkpoint
    assert newest is None or newest.step == 4


@pytest.mark.parametrize(
    ("config", "losses"),
    [
        (guards(max_bad_steps_in_a_row=2), {6: NAN, 7: NAN, 9: NAN, 10: NAN}),
        (guards(max_bad_steps=1, bad_step_window=6), {2: NAN, 8: NAN}),
        (guards(nonfinite=OnBadStep.rewind, max_rewinds=2), {6: NAN, 9: NAN}),
    ],
)
def test_within_the_caps_nothing_stops(tmp_path, config, losses):
    run, _ = train(tmp_path, config, losses=losses)
    assert run.state.step == 12


def test_a_batch_too_many_within_the_window_stops(tmp_path):
    with pytest.raises(TrainingDivergedError, match="2 bad steps among 7 batches"):
        train(tmp_path, guards(max_bad_steps=1, bad_step_window=7), losses={2: NAN, 8: NAN})


@pytest.mark.parametrize("policy", [OnBadStep.skip, OnBadStep.rewind])
@pytest.mark.parametrize("kill_after", [5, 7, 8, 9, 11, 13, 15])
def test_a_killed_run_decides_again_as_the_uninterrupted_one(tmp_path, policy, kill_after):
    """Whether its cause is in the data (losses of both attempts) or was there only once (of the first)."""
    config, losses = guards(nonfinite=policy, spike=policy), {7: NAN, 10: NAN, 14: SPIKE}
    straight, engine = train(tmp_path / "straight", config, losses=losses)
    for name, second_losses in (("in the data", losses), ("once", {})):
        with pytest.raises(KilledError):
            train(tmp_path / name, config, losses=losses, kill_after=kill_after)
        remaining = second_losses or {batch: loss for batch, loss in losses.items() if batch > kill_after}
        run, resumed = train(tmp_path / name, config, losses=remaining)
        assert torch.equal(resumed.weight, engine.weight) and torch.equal(resumed.momentum, engine.momentum)
        assert train_losses(tmp_path / name) == train_losses(tmp_path / "straight")
        assert _places(run) == _places(straight)
        assert run.state.batches == straight.state.batches


def _places(run) -> list[tuple]:
    """What was decided about which batch; what was measured of a step that is repeated may differ."""
    return [(entry.batch, entry.step, entry.back_to) for entry in run.history.ledger]


def test_a_decision_is_not_repeated_when_its_policy_is_taken_back(tmp_path):
    with pytest.raises(KilledError):
        train(tmp_path, guards(spike=OnBadStep.skip), losses={7: SPIKE}, kill_after=7)
    run, _ = train(tmp_path, guards(), losses={})
    assert run.history.ledger == [] and run.state.batches == 12


def test_only_whole_lines_about_later_batches_are_read(tmp_path):
    entry = {"batch": 3, "step": 4, "cause": "spike", "loss": 1.0, "grad_norm": 1.0, "back_to": None}
    lines = [{"event": "step_skipped", "bad_step": entry | {"batch": batch}} for batch in (2, 3, 4)]
    lines.insert(1, {"event": "diverged", "bad_step": entry})
    path = tmp_path / METRICS_FILE
    path.write_text("\n".join(map(json.dumps, lines)) + '\n{"event": "step_skipped", "bad_step": {"ba')
    assert [found["batch"] for found in recorded_decisions(path, 3)] == [3, 4]
    assert recorded_decisions(tmp_path / "none", 0) == []


class OtherRanksEngine(FakeEngine):
    """Another rank has seen other numbers, as a broken machine would let it."""

    def __init__(self, others: list[float], **options) -> None:
        super().__init__(**options)
        self.others = torch.tensor(others, dtype=torch.float64)

    def max_over_ranks(self, tensor):
        return torch.maximum(tensor, self.others)


@pytest.mark.parametrize(("loss_elsewhere", "made"), [(9e9, 1), (float("inf"), 0)])
def test_what_any_rank_sees_decides_for_all(tmp_path, loss_elsewhere, made):
    hook = BadStepHook(guards(nonfinite=OnBadStep.stop), last_saved=lambda run: 0, load=lambda: None)
    engine = OtherRanksEngine([loss_elsewhere, 0.5])
    run = Run(
        tmp_path, engine, data_from(0), lambda tokens: 0.1, num_steps=1, batch_tokens=lambda batch: TOKENS_PER_STEP
    )
    if made:
        fit(run, [hook])
        assert list(run.history.losses) == [loss_elsewhere]
    else:
        with pytest.raises(TrainingDivergedError, match="loss=inf"):
            fit(run, [hook])
    assert engine.steps == made


def step_without_labels(run_dir, grad_norm=0.0, **options):
    """The third step of a run, of a batch in which nothing is predicted, after a checkpoint of the first."""
    batches = [next(data_from(step)) for step in range(4)]
    for batch in batches[2]:
        batch.labels[:] = -100
    loads = []
    hook = BadStepHook(guards(**options), last_saved=lambda run: 1, load=lambda: loads.append(1))
    engine = FakeEngine(losses={3: NAN})
    train_step = engine.train_step

    def with_norm(batches, rate, accept):
        return train_step(batches, rate, lambda r: accept(replace(r, grad_norm=grad_norm) if math.isnan(r.loss) else r))

    engine.train_step = with_norm
    with MetricsWriter(run_dir / METRICS_FILE) as metrics:
        run = Run(
            run_dir,
            engine,
            iter(batches),
            lambda tokens: 0.1,
            num_steps=3,
            batch_tokens=lambda batch: TOKENS_PER_STEP,
            metrics=metrics,
        )
        fit(run, [hook])
    assert not loads
    return run


@pytest.mark.parametrize("policy", [OnBadStep.skip, OnBadStep.rewind])
def test_a_batch_without_a_label_is_skipped_and_undoes_nothing(tmp_path, policy):
    run = step_without_labels(tmp_path, nonfinite=policy)
    (entry,) = run.history.ledger
    assert (entry.batch, entry.step, entry.cause, entry.back_to) == (2, 3, Cause.unlabelled, None)
    assert (run.state.step, run.state.batches, run.history.rewinds) == (3, 4, 0)
    (event,) = events(tmp_path, "step_skipped")
    assert "step 3 was not made: no token of its batch is supervised; its batch 2 is skipped" in event["message"]


def test_where_a_batch_without_a_label_stops_the_run_the_data_is_blamed(tmp_path):
    (tmp_path / SUBSTITUTES_FILE).write_text("")
    with pytest.raises(TrainingDivergedError) as stop:
        step_without_labels(tmp_path, nonfinite=OnBadStep.stop)
    assert f"no token of its batch is supervised, damaged blocks are in {SUBSTITUTES_FILE}" in str(stop.value)
    assert "guards.nonfinite=stop" in str(stop.value) and "restore the damaged blocks" in str(stop.value)
    assert "peak_lr" not in str(stop.value)


def test_batches_without_labels_count_to_the_caps(tmp_path):
    with pytest.raises(TrainingDivergedError, match=r"more than guards\.max_bad_steps_in_a_row=0"):
        step_without_labels(tmp_path, max_bad_steps_in_a_row=0)


def test_weights_that_are_no_numbers_are_not_blamed_on_the_data(tmp_path):
    with pytest.raises(TrainingDivergedError, match=r"diverged at step 3: loss=nan, gradient norm=nan.*peak_lr"):
        step_without_labels(tmp_path, grad_norm=NAN, nonfinite=OnBadStep.stop)
