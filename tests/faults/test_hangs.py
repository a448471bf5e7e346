"""A rank that is stopped, one that waits for ever, one that is slow: the job ends, or goes on, and says who it was."""

import os
import signal
import time
from pathlib import Path

import pytest

from loopcoder_train.checkpoint import find_checkpoint
from tests.faults.conftest import start
from tests.integration.conftest import logged_steps, losses, pretrain
from tests.integration.running import events

NEVER = {"kind": "nan", "rank": 0, "batch": 10**6}
SECONDS = 20  # a loaded machine imports Megatron for longer than a step takes
SHORT = f"guards.hang_timeout_seconds={SECONDS}"
TORCHRUN_KILLS_AFTER_SECONDS = 30  # SIGTERM first, which a stopped process does not hear
POLLS_AND_LAUNCHER_SECONDS = 10


@pytest.mark.faults
def test_a_stopped_rank_is_named_and_the_job_ends_in_the_stated_time(tmp_path, corpus):
    run_dir = tmp_path / "run"
    job = start(run_dir, corpus, SHORT, "training.num_steps=100000", "data.max_repeats=1000000", fault=NEVER)
    job.wait_for(lambda: max(logged_steps(run_dir), default=0) >= 5)
    victim = job.workers()[1]
    os.kill(victim, signal.SIGSTOP)
    stopped = time.monotonic()
    outcome = job.wait()
    assert time.monotonic() - stopped < 1.6 * SECONDS + TORCHRUN_KILLS_AFTER_SECONDS + POLLS_AND_LAUNCHER_SECONDS
    assert outcome.code == 1
    (line,) = [line for line in outcome.stderr.splitlines() if line.startswith("loopcoder: error")]
    assert "rank 0 failed with exit code 1 (HangError: no progress for" in line
    assert f", process {victim}) does not answer, it was last in " in line and "rank 1 (" in line
    log = (run_dir / "logs" / "attempt-1" / "rank-0.stderr").read_text()
    assert "stacks of all threads" in log and "train_one_step" in log
    assert not Path(f"/proc/{victim}").exists(), "a stopped worker outlived its job"
    assert find_checkpoint(run_dir).checkpoint.step >= 4


def test_a_rank_that_waits_for_ever_is_named_by_where_it_is(tmp_path, corpus):
    outcome = start(tmp_path / "run", corpus, SHORT, fault={"kind": "hang", "rank": 1, "batch": 5}).wait()
    (line,) = [line for line in outcome.stderr.splitlines() if line.startswith("loopcoder: error")]
    assert "in step 6, forward, backward and update" in line and "is in step 6, waiting for data" in line
    log = (tmp_path / "run" / "logs" / "attempt-1" / "rank-1.stderr").read_text()
    assert "in hang" in log, "the hung rank's own stack"


@pytest.mark.faults
def test_a_hung_job_restarts_and_ends_like_the_uninterrupted_one(tmp_path, corpus):
    straight, run_dir = tmp_path / "straight", tmp_path / "run"
    assert pretrain(straight, corpus, "parallel.world_size=2").code == 0
    fault = {"kind": "hang", "rank": 1, "batch": 5, "once": True}
    outcome = start(run_dir, corpus, SHORT, fault=fault, max_restarts=1).wait()
    assert outcome.code == 0 and "restart 1 of 1" in outcome.stderr, outcome.stderr
    assert losses(run_dir) == losses(straight)


@pytest.mark.faults
def test_a_slow_rank_is_named_and_the_run_goes_on(tmp_path, corpus):
    run_dir = tmp_path / "run"
    fault = {"kind": "slow", "rank": 1, "batch": 4}
    outcome = start(run_dir, corpus, "guards.slow_rank_every_steps=4", fault=fault).wait()
    assert outcome.code == 0, outcome.stderr
    found = [event for event in events(run_dir, "slow_ranks") if event["step"] > 4]
    assert [(event["step"], event["ranks"]) for event in found] == [(8, [1]), (12, [1])]
    assert found[0]["worst_seconds"] > 0.5 and "WARNING: slow: rank 1 (" in outcome.stdout
