import errno
import itertools

import pytest
import torch

from loopcoder_train.checkpoint import find_checkpoint
from loopcoder_train.checkpoint import save as save_module
from loopcoder_train.config import CheckpointConfig, GuardsConfig, OnBadStep, UserError
from loopcoder_train.training.bad_steps import BadStepHook, TrainingDivergedError
from loopcoder_train.training.batch import to_micro_batch
from loopcoder_train.training.checkpoint_hook import CheckpointHook
from loopcoder_train.training.evaluate_hook import EvaluateHook
from loopcoder_train.training.log_hook import LogHook
from loopcoder_train.training.loop import Hook, Run, fit
from loopcoder_train.training.metrics import METRICS_FILE, MetricsWriter, read_metrics
from loopcoder_train.training.resume import restore
from loopcoder_train.training.telemetry_hook import TelemetryHook
from tests.unit.training.fakes import BATCH, SEQUENCE_LENGTH, TINY, FakeEngine, data_from

CPU = torch.device("cpu")
TOKENS_PER_STEP = BATCH * SEQUENCE_LENGTH


@pytest.fixture(autouse=True, params=[True, False], ids=["asynchronous", "synchronous"])
def asynchronous(request, monkeypatch):
    """Every test of the loop with both kinds of saves."""
    monkeypatch.setattr("tests.unit.training.test_loop.ASYNCHRONOUS", request.param)
    return request.param


ASYNCHRONOUS = True


def make_run(run_dir, metrics, engine=None, **options) -> Run:
    defaults = {"num_steps": 12, "learning_rate": lambda tokens: 1.0 / (10 + tokens / TOKENS_PER_STEP)}
    return Run(
        run_dir=run_dir,
        engine=engine or FakeEngine(),
        data=data_from(0),
        batch_tokens=lambda batch: TOKENS_PER_STEP,
        metrics=metrics,
        **{**defaults, **options},
    )


def checkpoint_hook_for(every_steps=4, keep_last=3) -> CheckpointHook:
    config = CheckpointConfig(every_steps=every_steps, keep_last=keep_last, asynchronous=ASYNCHRONOUS)
    return CheckpointHook(
        config,
        CPU,
        stream_state=lambda batches: {"position": batches * BATCH},
        logger_run_ids={"wandb": "abc"},
        options={"seed": 0},
    )


def stop_at_bad_steps() -> BadStepHook:
    config = GuardsConfig(nonfinite=OnBadStep.stop, spike=OnBadStep.ignore)
    return BadStepHook(config, last_saved=lambda run: 0, load=lambda: None)


def standard_hooks(engine, **options) -> list[Hook]:
    return [
        stop_at_bad_steps(),
        LogHook(TINY, CPU, every_steps=1),
        TelemetryHook(to_micro_batch(next(data_from(99))[0]), every_steps=5),
        EvaluateHook(lambda: {"loss": float(engine.weight)}, every_steps=5),
        checkpoint_hook_for(**options),
    ]


def train(run_dir, engine=None, **options):
    """One attempt, resumed from what is in `run_dir`; returns the final state."""
    engine = engine or FakeEngine()
    checkpoint = find_checkpoint(run_dir).checkpoint
    with MetricsWriter(run_dir / METRICS_FILE) as metrics:
        run = make_run(run_dir, metrics, engine, **options)
        if checkpoint is not None:
            snapshot = restore(checkpoint, engine, rank=0, world_size=1, device=CPU)
            assert snapshot.stream == {"position": snapshot.training.step * BATCH}
            assert snapshot.loggers == {"wandb": "abc"}
            run.state, run.data = snapshot.training, data_from(snapshot.training.step)
        return fit(run, standard_hooks(engine))


def losses(run_dir) -> dict[int, float]:
    return {record["step"]: record["loss"] for record in read_metrics(run_dir / METRICS_FILE, ["train"])}


def test_resumed_run_equals_the_straight_one(tmp_path):
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    straight.mkdir(), resumed.mkdir()
    train(straight)
    first = train(resumed, stop_after_step=7)
    assert (first.step, first.tokens) == (7, 7 * TOKENS_PER_STEP)
    last = train(resumed)
    assert (first.attempt, last.attempt) == (1, 2)
    assert losses(resumed) == losses(straight)
    assert list(losses(straight)) == list(range(1, 13))
    assert last.supervised_tokens == 12 * BATCH * (SEQUENCE_LENGTH - 1)
    records = read_metrics(resumed / METRICS_FILE, ["train"])
    assert [record["attempt"] for record in records] == [1] * 7 + [2] * 5


def test_a_killed_attempt_is_repeated_from_its_last_checkpoint(tmp_path):
    class KilledError(Exception):
        pass

    class KillAt10(Hook):
        def after_step(self, run, step):
            if step.number == 10:
                raise KilledError

    straight, killed = tmp_path / "straight", tmp_path / "killed"
    straight.mkdir(), killed.mkdir()
    train(straight)
    engine = FakeEngine()
    with pytest.raises(KilledError), MetricsWriter(killed / METRICS_FILE) as metrics:
        fit(make_run(killed, metrics, engine), [*standard_hooks(engine), KillAt10()])
    assert find_checkpoint(killed).checkpoint.step == 8
    train(killed)
    assert losses(killed) == losses(straight)
    assert [r["attempt"] for r in read_metrics(killed / METRICS_FILE, ["train"])] == [1] * 8 + [2] * 4


def test_learning_rate_is_asked_for_the_tokens_at_the_end_of_the_step(tmp_path):
    engine = FakeEngine()
    fit(make_run(tmp_path, None, engine, num_steps=2, learning_rate=float), [])
    assert engine.learning_rates == [TOKENS_PER_STEP, 2 * TOKENS_PER_STEP]


def test_nan_stops_before_anything_of_the_step_is_saved(tmp_path):
    with pytest.raises(TrainingDivergedError, match=r"step 8: loss=nan.*optimizer.peak_lr"):
        train(tmp_path, FakeEngine(nan_at=8))
    assert find_checkpoint(tmp_path).checkpoint.step == 4
    events = [record["event"] for record in read_metrics(tmp_path / METRICS_FILE, ["event"])]
    assert sorted(events) == ["diverged", "saved", "started"]
    assert 8 not in losses(tmp_path)


def full_disk_for(monkeypatch, *failing_calls):
    """The disk has no room for the n-th tensor files of the run; without a number, for none."""
    real, calls = save_module.write_tensors, itertools.count(1)

    def write(path, tensors):
        if not failing_calls or next(calls) in failing_calls:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, tensors)

    monkeypatch.setattr(save_module, "write_tensors", write)


def test_a_failed_save_is_loud_and_training_goes_on(tmp_path, monkeypatch):
    full_disk_for(monkeypatch, 2)
    assert train(tmp_path).step == 12
    failed = [r for r in read_metrics(tmp_path / METRICS_FILE, ["event"]) if r["event"] == "save_failed"]
    assert [record["checkpoint_step"] for record in failed] == [8]
    assert "No space left" in failed[0]["message"] and "last good checkpoint: step 4" in failed[0]["message"]
    assert "training goes on" in failed[0]["message"]
    assert find_checkpoint(tmp_path).checkpoint.step == 12


def test_a_failed_last_save_is_an_error(tmp_path, monkeypatch):
    full_disk_for(monkeypatch)
    with pytest.raises(UserError, match=r"last step 3 .*No space left.*last good checkpoint: none"):
        train(tmp_path, stop_after_step=3)


def test_the_last_step_is_tried_again_when_its_own_save_failed(tmp_path, monkeypatch):
    full_disk_for(monkeypatch, 3)
    assert train(tmp_path).step == 12
    assert find_checkpoint(tmp_path).checkpoint.step == 12


def test_intervals_of_evaluation_and_telemetry(tmp_path):
    engine = FakeEngine()
    state = train(tmp_path, engine)
    assert [r["step"] for r in read_metrics(tmp_path / METRICS_FILE, ["evaluation"])] == [5, 10, 12]
    assert [r["step"] for r in read_metrics(tmp_path / METRICS_FILE, ["telemetry"])] == [5, 10]
    best = min(read_metrics(tmp_path / METRICS_FILE, ["evaluation"]), key=lambda record: record["loss"])
    assert (state.best_held_out_loss, state.best_step) == (best["loss"], best["step"])


def test_a_hook_can_end_the_run_and_it_is_saved(tmp_path):
    class StopAt6(Hook):
        def after_step(self, run, step):
            if step.number == 6:
                run.stop_reason = "asked to"

    with MetricsWriter(tmp_path / METRICS_FILE) as metrics:
        fit(make_run(tmp_path, metrics), [StopAt6(), *standard_hooks(FakeEngine())])
    assert find_checkpoint(tmp_path).checkpoint.step == 6
    messages = [record["message"] for record in read_metrics(tmp_path / METRICS_FILE, ["event"])]
    assert "asked to at step 6 of 12" in messages and messages[-1] == "saved the checkpoint of step 6"
    assert [r["step"] for r in read_metrics(tmp_path / METRICS_FILE, ["evaluation"])] == [5]


def test_hooks_are_closed_after_an_error_and_not_asked_to_stop(tmp_path):
    calls = []

    class Recorder(Hook):
        def on_stop(self, run):
            calls.append("stop")

        def close(self):
            calls.append("close")

    with pytest.raises(TrainingDivergedError):
        fit(make_run(tmp_path, MetricsWriter(tmp_path / "m"), FakeEngine(nan_at=1)), [Recorder(), stop_at_bad_steps()])
    assert calls == ["close"]


def test_a_finished_run_trains_and_saves_nothing_more(tmp_path):
    train(tmp_path)
    before = len(losses(tmp_path))
    assert train(tmp_path).step == 12
    assert len(losses(tmp_path)) == before
    assert [r["event"] for r in read_metrics(tmp_path / METRICS_FILE, ["event"])][-2:] == ["resumed", "stopped"]


def test_train_records_have_every_promised_key(tmp_path):
    train(tmp_path)
    record = read_metrics(tmp_path / METRICS_FILE, ["train"])[-1]
    promised = "step tokens loss lr grad_norm tokens_per_second model_flops_per_second data_wait_seconds step_seconds"
    assert {*promised.split(), "memory_bytes", "supervised_tokens", "attempt", "kind"} <= record.keys()
    assert record["memory_bytes"] > 1 << 20 and record["tokens_per_second"] > 0


def test_the_last_step_is_evaluated_once(tmp_path):
    calls = []
    hook = EvaluateHook(lambda: {"loss": float(len(calls.append(1) or calls))}, every_steps=4)
    run = make_run(tmp_path, MetricsWriter(tmp_path / METRICS_FILE))
    fit(run, [hook])
    assert len(calls) == 3
    assert (run.state.best_held_out_loss, run.state.best_step) == (1.0, 4)
