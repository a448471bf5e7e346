"""Kill -9 at any moment, then the same command: the same losses bit for bit; another layout: the same tokens."""

import os
import random
import re
import shutil
import signal
import subprocess
import time

import pytest

from loopcoder_train.training.metrics import METRICS_FILE
from tests.integration.conftest import (
    NUM_STEPS,
    TORCHRUN,
    command,
    environment,
    logged_steps,
    losses,
    pretrain,
    pretrain_arguments,
    supervised_tokens,
    workers_of,
)

TWO = "parallel.world_size=2"


@pytest.fixture(scope="module")
def straight(tmp_path_factory, corpus):
    """An uninterrupted run on two processes."""
    run_dir = tmp_path_factory.mktemp("straight") / "run"
    outcome = pretrain(run_dir, corpus, TWO)
    assert outcome.code == 0, outcome.stderr + outcome.stdout
    return run_dir


def start_and_kill(run_dir, corpus, *, after_step: int, delay: float, whom: str) -> str:
    """Start the run and, `delay` seconds after a step was logged, SIGKILL its launcher or one of its workers.

    Returns what the launcher said.
    """
    line = command(*pretrain_arguments(run_dir, corpus, TWO))
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment(), text=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None and max(logged_steps(run_dir), default=0) < after_step:
        time.sleep(0.005)
    time.sleep(delay)
    victims = [process.pid] if whom == "launcher" else workers_of(process.pid)[:1]
    for victim in victims:
        os.kill(victim, signal.SIGKILL)
    return process.communicate(timeout=60)[1]


@pytest.mark.parametrize(("after_step", "whom"), [(2, "launcher"), (5, "worker"), (8, "launcher")])
def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(tmp_path, corpus, straight, after_step, whom):
    run_dir = tmp_path / "run"
    delay = random.Random(after_step).uniform(0, 0.3)
    for _ in range(3):  # on a busy machine the run may be at its end before this process gets to kill it
        said = start_and_kill(run_dir, corpus, after_step=after_step, delay=delay, whom=whom)
        if max(logged_steps(run_dir)) < NUM_STEPS:
            break
        shutil.rmtree(run_dir)
    assert run_dir.exists(), "the run ended before it was killed"
    if whom == "worker":
        last = max(logged_steps(run_dir))
        assert re.match(rf"loopcoder: error: rank \d was killed by SIGKILL.*, after step {last} of {NUM_STEPS}; ", said)
    outcome = pretrain(run_dir, corpus, TWO)
    assert outcome.code == 0, outcome.stderr + outcome.stdout
    assert losses(run_dir) == losses(straight)


@pytest.mark.parametrize(
    "layout",
    [["parallel.world_size=1"], [TWO, "parallel.tensor_parallel_size=2", "parallel.sequence_parallel=true"]],
    ids=["one process", "TP2 + SP"],
)
def test_another_layout_continues_with_the_same_tokens(tmp_path, corpus, straight, layout):
    run_dir = tmp_path / "run"
    shutil.copytree(straight, run_dir)
    for step in (8, NUM_STEPS):
        shutil.rmtree(run_dir / "checkpoints" / f"step-{step:08d}")
    (run_dir / "checkpoints" / "latest").unlink()
    outcome = pretrain(run_dir, corpus, *layout)
    assert outcome.code == 0, outcome.stderr + outcome.stdout
    assert "resuming after step 4" in outcome.stdout
    assert supervised_tokens(run_dir) == supervised_tokens(straight)
    expected, actual = losses(straight), losses(run_dir)
    assert actual.keys() == expected.keys()
    for step in range(5, 10):  # Adam's eps of 1e-15 turns rounding into whole steps afterwards
        assert actual[step] == pytest.approx(expected[step], rel=2e-3), step


def test_finished_run_does_nothing_when_started_again(corpus, straight):
    before = losses(straight)
    outcome = pretrain(straight, corpus, TWO)
    assert outcome.code == 0 and losses(straight) == before


def test_torchrun_by_hand_is_the_same_run(tmp_path, corpus, straight):
    run_dir = tmp_path / "run"
    written = pretrain(run_dir, corpus, TWO, "launch.start_workers=false")
    assert written.code == 0 and not (run_dir / METRICS_FILE).exists()
    assert "torchrun --nnodes" in written.stdout and str(run_dir / "run.yaml") in written.stdout
    line = [TORCHRUN, "--standalone", "--nproc-per-node", "2", "-m", "loopcoder_train.worker"]
    result = subprocess.run(
        [*line, "--config", str(run_dir / "run.yaml")], env=environment(), capture_output=True, check=False
    )
    assert result.returncode == 0, result.stderr.decode()
    assert losses(run_dir) == losses(straight)
