"""SIGKILL of a random rank at twenty random moments of one run, which restarts in place and loses nothing."""

import os
import random
import re
import signal
import time
from pathlib import Path

import pytest

from loopcoder_train.checkpoint import checkpoints_of
from loopcoder_train.training.metrics import METRICS_FILE, newest_records, read_metrics
from tests.integration.conftest import losses, pretrain, pretrain_arguments, workers_of
from tests.integration.running import Running

KILLS, SEED = 20, 5
EVERY_STEPS = 3  # between saves
STEPS = 6 * KILLS + 10  # a kill comes at most five steps after the start or the kill before it
OPTIONS = [
    "parallel.world_size=2",
    f"training.num_steps={STEPS}",
    "data.max_repeats=1000000",
    f"checkpoint.every_steps={EVERY_STEPS}",
    "evaluation.every_steps=2",
    "evaluation.batch_size=1",
]
pytestmark = [pytest.mark.faults, pytest.mark.distributed, pytest.mark.timeout(1800)]


def both_workers(run: Running, former: list[int]) -> list[int]:
    """Process ids of the two workers of an attempt after the one of `former`."""
    found: list[int] = []

    def started() -> bool:
        found[:] = workers_of(run.process.pid)
        return len(found) == 2 and not set(found) & set(former)

    run.wait_for(started, "the next attempt")
    return list(found)


def wait_for_a_random_moment(run: Running, rng: random.Random, former_attempt: int) -> None:
    """During start-up, or in the middle of whatever comes up to five steps later: steps, saves, evaluations."""
    if rng.random() < 0.3:
        time.sleep(rng.uniform(0, 6))
        return
    run.wait_for(lambda: newest(run.run_dir)[0] > former_attempt, "the start of the next attempt")
    goal = newest(run.run_dir)[1] + rng.randint(0, 4)
    run.wait_for(lambda: newest(run.run_dir)[1] >= goal, f"step {goal}")
    time.sleep(rng.uniform(0, 0.3))


def newest(run_dir: Path) -> tuple[int, int]:
    """Attempt and step of the newest record; (0, 0) before there is one."""
    return next(((r["attempt"], r["step"]) for r in newest_records(run_dir / METRICS_FILE)), (0, 0))


def test_twenty_random_kills_equal_the_uninterrupted_run(tmp_path, corpus):
    straight, run_dir, rng = tmp_path / "straight", tmp_path / "run", random.Random(SEED)
    outcome = pretrain(straight, corpus, *OPTIONS)
    assert outcome.code == 0, outcome.stderr
    victims, workers, attempt = [], [], 0
    with Running(run_dir, pretrain_arguments(run_dir, corpus, *OPTIONS, f"launch.max_restarts={KILLS}")) as run:
        for _ in range(KILLS):
            workers = both_workers(run, workers)
            wait_for_a_random_moment(run, rng, attempt)
            attempt, _ = newest(run_dir)
            victim = rng.randrange(2)
            os.kill(run.worker(victim), signal.SIGKILL)
            victims.append(victim)
        outcome = run.end(timeout=600)
    assert outcome.code == 0, outcome.stderr
    lines = [line for line in outcome.stderr.splitlines() if line.startswith("loopcoder: error")]
    told = [int(re.search(r"rank (\d) was killed by SIGKILL", line)[1]) for line in lines]
    assert told == victims and lines[-1].endswith(f"restart {KILLS} of {KILLS}")
    assert losses(run_dir) == losses(straight)
    assert checkpoints_of(run_dir)[-1].step == STEPS
    assert_no_more_is_repeated_than_since_the_last_checkpoint(run_dir)


def assert_no_more_is_repeated_than_since_the_last_checkpoint(run_dir: Path) -> None:
    """Every attempt goes on from a checkpoint at least as new as the last one that was told to be saved."""
    resumes, saved = 0, 0
    for event in read_metrics(run_dir / METRICS_FILE, ["event"]):
        if event["event"] == "saved":
            saved = max(saved, event["checkpoint_step"])
        elif event["event"] == "resumed":
            resumes += 1
            assert event["step"] >= saved, event
    assert resumes > KILLS / 2, "nearly all kills came before the first step"
