"""Asked to stop at any moment, all ranks end at the same step with one checkpoint; the next attempt goes on as if
nothing had happened."""

import shutil
import signal
import time
from pathlib import Path

import pytest

from loopcoder_train.checkpoint import checkpoints_of
from loopcoder_train.training.metrics import METRICS_FILE, read_metrics
from tests.integration.conftest import NUM_STEPS, losses, pretrain, pretrain_arguments
from tests.integration.running import Running, events, newest_step

pytestmark = pytest.mark.distributed
TWO = ["parallel.world_size=2", "evaluation.batch_size=1", "evaluation.max_sequences_per_source=60"]


@pytest.fixture(scope="module")
def straight(tmp_path_factory, corpus):
    """An uninterrupted run; its evaluations take long enough to be met by a signal."""
    run_dir = tmp_path_factory.mktemp("straight") / "run"
    outcome = pretrain(run_dir, corpus, *TWO)
    assert outcome.code == 0, outcome.stderr + outcome.stdout
    return run_dir


def start(run_dir, corpus, *options) -> Running:
    return Running(run_dir, pretrain_arguments(run_dir, corpus, *TWO, *options))


def saving(run_dir: Path):
    return lambda: any(run_dir.glob("checkpoints/*.tmp*"))


def held_out(run_dir) -> dict[int, float]:
    return {record["step"]: record["loss"] for record in read_metrics(run_dir / METRICS_FILE, ["evaluation"])}


def resume_and_compare(run_dir, corpus, straight) -> None:
    outcome = pretrain(run_dir, corpus, *TWO)
    assert outcome.code == 0, outcome.stderr + outcome.stdout
    assert losses(run_dir) == losses(straight)
    assert held_out(run_dir) == held_out(straight)


def stopped_once(run_dir, *, step_at_most: int) -> dict:
    """The event that tells of the stop, after checking that there was one stop and one checkpoint of that step."""
    (stop,) = events(run_dir, "asked_to_stop")
    saved = [event for event in events(run_dir, "saved") if event["step"] == stop["step"]]
    assert len(saved) == 1 and stop["step"] <= step_at_most, (stop, saved)
    assert checkpoints_of(run_dir)[-1].step == stop["step"] == newest_step(run_dir)
    return stop


def test_sigterm_to_one_rank_in_the_middle_of_a_step(tmp_path, corpus, straight):
    run_dir = tmp_path / "run"
    with start(run_dir, corpus) as run:
        run.wait_for_step(2)
        run.signal_worker(1, signal.SIGTERM)
        outcome = run.end()
    assert outcome.code == 143 and outcome.stderr == "loopcoder: stopped by SIGTERM\n"
    stop = stopped_once(run_dir, step_at_most=NUM_STEPS - 1)
    assert (stop["cause"], stop["rank"], stop["exit_code"]) == ("term", 1, 143)
    assert stop["seconds_to_agreement"] + stop["seconds_to_end"] < 10
    note = f"SIGTERM to rank 1: saved and stopped after step {stop['step']} of {NUM_STEPS}; the same command continues"
    assert note in outcome.stdout
    resume_and_compare(run_dir, corpus, straight)


def test_sigusr2_in_the_middle_of_an_evaluation(tmp_path, corpus, straight):
    run_dir = tmp_path / "run"
    with start(run_dir, corpus) as run:
        run.wait_for_step(6)
        time.sleep(0.05)
        run.signal_worker(0, signal.SIGUSR2)
        outcome = run.end()
    assert outcome.code == 75 and "start it again" in outcome.stderr
    stop = stopped_once(run_dir, step_at_most=6)
    assert stop["step"] == 6 and held_out(run_dir) == {}, "the evaluation was not cut short"
    resume_and_compare(run_dir, corpus, straight)  # which begins with the evaluation that is owed


def test_sigterm_in_the_middle_of_a_save(tmp_path, corpus, straight):
    run_dir = tmp_path / "run"
    with start(run_dir, corpus) as run:
        run.wait_for(saving(run_dir), "a save")
        run.signal_worker(1, signal.SIGTERM)
        outcome = run.end()
    assert outcome.code == 143
    stop = stopped_once(run_dir, step_at_most=5)
    assert [event["step"] for event in events(run_dir, "saved")] == sorted({4, stop["step"]})
    resume_and_compare(run_dir, corpus, straight)


def test_ctrl_c_while_the_workers_start_and_a_resume_that_has_no_time(tmp_path, corpus):
    run_dir = tmp_path / "run"
    with start(run_dir, corpus) as run:
        run.wait_for(lambda: any(run_dir.glob("logs/attempt-1/rank-1.stderr")), "workers")
        time.sleep(1)  # importing
        run.process.send_signal(signal.SIGINT)
        outcome = run.end()
    assert outcome.code == 130 and "SIGINT: the run saves and stops" in outcome.stderr
    assert newest_step(run_dir) == 0 and not checkpoints_of(run_dir)
    outcome = pretrain(run_dir, corpus, *TWO, "training.time_limit_minutes=0.05")
    assert outcome.code == 2 and "training.time_limit_minutes=0.05" in outcome.stderr, outcome.stderr


def test_second_ctrl_c_stops_at_once(tmp_path, corpus):
    run_dir = tmp_path / "run"
    with start(run_dir, corpus, "evaluation.max_sequences_per_source=100000") as run:
        run.wait_for_step(6)  # evaluates for long
        run.signal_worker(0, signal.SIGSTOP)  # a rank that no longer answers: the agreement cannot come
        run.process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert run.process.poll() is None
        started = time.monotonic()
        run.process.send_signal(signal.SIGINT)
        outcome = run.end(timeout=10)
    assert outcome.code == 130 and time.monotonic() - started < 5
    assert [checkpoint.step for checkpoint in checkpoints_of(run_dir)] == [4]


def test_the_time_limit_is_met_and_nothing_is_lost(tmp_path, corpus, straight):
    """12 steps of a run that has been slowed down take longer than the limit; attempts follow each other to the end."""
    run_dir = tmp_path / "run"
    slow = ["evaluation.every_steps=1", "evaluation.max_sequences_per_source=400"]
    began = time.monotonic()
    outcome = pretrain(run_dir, corpus, *TWO, *slow, "training.time_limit_minutes=0.5")
    assert outcome.code == 75 and time.monotonic() - began < 30, outcome.stderr
    stop = stopped_once(run_dir, step_at_most=NUM_STEPS - 1)
    assert (stop["cause"], stop["rank"]) == ("time_limit", 0)
    outcome = pretrain(run_dir, corpus, *TWO)
    assert outcome.code == 0 and losses(run_dir) == losses(straight)


def test_a_stop_at_the_last_step_is_a_finished_run(tmp_path, corpus, straight):
    run_dir = tmp_path / "run"
    shutil.copytree(straight, run_dir)
    with start(run_dir, corpus) as run:
        run.wait_for(lambda: len(events(run_dir, "resumed")) == 1, "the second attempt")
        outcome = run.end()
    assert outcome.code == 0
