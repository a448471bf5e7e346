"""Asked to stop at any moment, all ranks end at the same step with one checkpoint; the next attempt goes on as if
nothing had happened."""

import signal
import time
from pathlib import Path

import pytest

from loopcoder_train.checkpoint import checkpoints_of
from loopcoder_train.training.metrics import METRICS_FILE, read_metrics
from tests.integration.conftest import NUM_STEPS, losses, pretrain, pretrain_arguments
from tests.integration.running import Running, events, newest_step

pytestmark = pytest.mark.distributed
# Evaluations take long enough to be met by a signal.
TWO = ["parallel.world_size=2", "evaluation.batch_size=1", "evaluation.max_sequences_per_source=60"]


@pytest.fixture(scope="module")
def straight(tmp_path_factory, corpus):
    """An uninterrupted run."""
    run_dir = tmp_path_factory.mktemp("straight") / "run"
    outcome = pretrain(run_dir, corpus, *TWO)
    assert outcome.code == 0, outcome.stderr + outcome.stdout
    return run_dir


def start(run_dir, corpus, *options) -> Running:
    return Running(run_dir, pretrain_arguments(run_dir, corpus, *TWO, *options))


def saving(run_dir: Path):
    return lambda: any(run_dir.glob("checkpoints/*.tmp-*"))


def held_out(run_dir) -> dict[int, float]:
    return {record["step"]: record["loss"] for record in read_metrics(run_dir / METRICS_FILE, ["evaluation"])}


def last_stop(run_dir) -> dict:
    """The event that tells of the newest stop, after checking that one checkpoint of that step was saved."""
    stop = events(run_dir, "asked_to_stop")[-1]
    saved = [event for event in events(run_dir, "saved") if event["checkpoint_step"] == stop["step"]]
    assert len(saved) == 1, saved
    assert checkpoints_of(run_dir)[-1].step == stop["step"] == newest_step(run_dir)
    return stop


def test_stopped_in_a_step_in_a_save_and_in_an_evaluation_it_equals_the_uninterrupted_run(tmp_path, corpus, straight):
    run_dir = tmp_path / "run"
    with start(run_dir, corpus) as run:
        run.wait_for_step(2)
        run.signal_worker(1, signal.SIGTERM)
        outcome = run.end()
    assert outcome.code == 143 and outcome.stderr == "loopcoder: stopped by SIGTERM\n", outcome
    stop = last_stop(run_dir)
    assert (stop["cause"], stop["rank"], stop["exit_code"]) == ("term", 1, 143) and stop["step"] <= 3
    assert stop["seconds_to_agreement"] + stop["seconds_to_end"] < 60
    note = f"SIGTERM to rank 1: saved and stopped after step {stop['step']} of {NUM_STEPS}; the same command continues"
    assert note in outcome.stdout

    with start(run_dir, corpus) as run:
        run.wait_for(saving(run_dir), "a save")
        run.signal_worker(0, signal.SIGINT)
        outcome = run.end()
    assert outcome.code == 130, outcome
    assert last_stop(run_dir)["step"] in (4, 5)

    with start(run_dir, corpus) as run:
        run.wait_for_step(6)
        time.sleep(0.02)
        run.signal_worker(0, signal.SIGUSR2)
        outcome = run.end()
    assert outcome.code == 75 and "start it again" in outcome.stderr, outcome
    assert last_stop(run_dir)["step"] == 6 and held_out(run_dir) == {}, "the evaluation was not cut short"

    outcome = pretrain(run_dir, corpus, *TWO)  # begins with the evaluation that is owed
    assert outcome.code == 0, outcome.stderr + outcome.stdout
    assert losses(run_dir) == losses(straight)
    assert held_out(run_dir) == held_out(straight)
    assert len(events(run_dir, "asked_to_stop")) == 3


def test_ctrl_c_while_the_workers_start(tmp_path, corpus):
    run_dir = tmp_path / "run"
    with start(run_dir, corpus) as run:
        run.wait_for(lambda: any(run_dir.glob("logs/attempt-1/rank-1.stderr")), "workers")
        time.sleep(1)  # they import
        run.process.send_signal(signal.SIGINT)
        outcome = run.end()
    assert outcome.code == 130 and "SIGINT: the run saves and stops" in outcome.stderr, outcome
    assert newest_step(run_dir) == 0 and not checkpoints_of(run_dir)


@pytest.mark.faults
def test_second_ctrl_c_stops_at_once(tmp_path, corpus):
    run_dir = tmp_path / "run"
    with start(run_dir, corpus, "evaluation.max_sequences_per_source=100000") as run:
        run.wait_for_step(6)  # evaluates for long
        run.signal_worker(0, signal.SIGSTOP)  # a rank that no longer answers: the agreement cannot come
        run.process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert run.process.poll() is None
        began = time.monotonic()
        run.process.send_signal(signal.SIGINT)
        outcome = run.end(timeout=30)
    assert outcome.code == 130 and time.monotonic() - began < 15, outcome
    assert [checkpoint.step for checkpoint in checkpoints_of(run_dir)] == [4]


@pytest.mark.faults
def test_the_time_limit_is_met_and_nothing_is_lost(tmp_path, corpus, straight):
    """The limit leaves some steps of a run that has been slowed down, on this machine as loaded as it is."""
    run_dir = tmp_path / "run"
    began = time.time()
    first = pretrain(run_dir, corpus, *TWO, "training.stop_after_step=1")
    assert first.code == 0
    limit = 2 * (events(run_dir, "started")[0]["time"] - began) + 40
    slow = ["evaluation.every_steps=1", "evaluation.max_sequences_per_source=100000"]
    began = time.time()
    outcome = pretrain(run_dir, corpus, *TWO, *slow, f"training.time_limit_minutes={limit / 60}")
    assert outcome.code == 75 and time.time() - began < limit, outcome.stderr
    stop = last_stop(run_dir)
    assert (stop["cause"], stop["rank"]) == ("time_limit", 0) and 1 < stop["step"] < NUM_STEPS
    outcome = pretrain(run_dir, corpus, *TWO, f"training.time_limit_minutes={1 / 600}")
    assert outcome.code == 2 and "are needed to save and end; give more time" in outcome.stderr
    outcome = pretrain(run_dir, corpus, *TWO)
    assert outcome.code == 0 and losses(run_dir) == losses(straight)
