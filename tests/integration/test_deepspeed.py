"""Real runs with engine=deepspeed: the losses of the plain engine, and bit for bit after kill -9."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.integration.conftest import (
    NUM_STEPS,
    command,
    environment,
    logged_steps,
    losses,
    pretrain,
    pretrain_arguments,
    supervised_tokens,
    workers_of,
)

pytestmark = pytest.mark.timeout(600)
FP32 = "training.precision=fp32"
ZERO_3 = [
    "engine=deepspeed",
    "deepspeed.zero_stage=3",
    "deepspeed.offload_optimizer=true",
    "parallel.world_size=2",
    FP32,
]
SAME_STEPS = 5  # after which Adam's eps of 1e-15 has turned rounding into whole steps


@pytest.fixture(scope="module")
def straight(tmp_path_factory, corpus) -> Path:
    """An uninterrupted run on two processes under ZeRO-3, with evaluation and telemetry."""
    run_dir = tmp_path_factory.mktemp("straight") / "run"
    outcome = pretrain(run_dir, corpus, *ZERO_3, FP32, "guards.recompute_every_steps=6")
    assert outcome.code == 0, outcome.stderr + outcome.stdout
    assert "WARNING" not in outcome.stdout + outcome.stderr
    return run_dir


@pytest.fixture(scope="module")
def plain(tmp_path_factory, corpus) -> Path:
    """The same run on the plain engine."""
    run_dir = tmp_path_factory.mktemp("plain") / "run"
    outcome = pretrain(run_dir, corpus, "engine=plain", FP32)
    assert outcome.code == 0, outcome.stderr + outcome.stdout
    return run_dir


def assert_same_up_to_rounding(run_dir: Path, reference: Path, first: int) -> None:
    """The tokens of `reference`, and for some steps its losses."""
    assert supervised_tokens(run_dir) == supervised_tokens(reference)
    expected, actual = losses(reference), losses(run_dir)
    compared = range(first, min(first + SAME_STEPS, NUM_STEPS + 1))
    assert [actual[step] for step in compared] == pytest.approx([expected[step] for step in compared], abs=1e-5)


def test_the_losses_are_those_of_the_plain_engine(straight, plain):
    assert_same_up_to_rounding(straight, plain, first=1)


def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(tmp_path, corpus, straight):
    run_dir = tmp_path / "run"
    line = command(*pretrain_arguments(run_dir, corpus, *ZERO_3, FP32))
    for _ in range(3):  # on a busy machine the run may be at its end before this process gets to kill it
        process = subprocess.Popen(
            line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment(), text=True
        )
        while process.poll() is None and max(logged_steps(run_dir), default=0) < 6:
            time.sleep(0.005)
        for worker in workers_of(process.pid)[:1]:
            os.kill(worker, signal.SIGKILL)
        process.wait(timeout=60)
        if max(logged_steps(run_dir)) < NUM_STEPS:
            break
        shutil.rmtree(run_dir)
    outcome = pretrain(run_dir, corpus, *ZERO_3, FP32)
    assert outcome.code == 0, outcome.stderr + outcome.stdout
    assert "resuming after step 4" in outcome.stdout
    assert losses(run_dir) == losses(straight)
