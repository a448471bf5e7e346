"""Kill -9 of one rank, in a step or in a save: all ranks stop, one line says who and when, and the run goes on.

In the layout it had the losses are those of an uninterrupted run, bit for bit; in another one the tokens are, and the
losses up to rounding.
"""

import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from loopcoder_train.checkpoint import checkpoints_of, find_checkpoint
from loopcoder_train.config.io import read_run_config, write_run_config
from tests.integration.conftest import (
    NUM_STEPS,
    ROOT,
    command,
    environment,
    logged_steps,
    losses,
    pretrain,
    pretrain_arguments,
    supervised_tokens,
    workers_of,
)
from tests.integration.slow_disk import SLOW_STEP

LAYOUTS = {
    "one process": ["parallel.world_size=1"],
    "DP2": ["parallel.world_size=2", "parallel.distributed_optimizer=true"],
    "TP2 + SP": ["parallel.tensor_parallel_size=2", "parallel.sequence_parallel=true"],
}
COMMON = ["training.precision=fp32"]
STOP_SECONDS = 60.0  # within which all ranks are gone; measured: 1 to 3
SAME_STEPS = 5  # after which Adam's eps of 1e-15 has turned rounding into whole steps


@pytest.fixture(scope="module")
def straight(tmp_path_factory, corpus):
    """`straight(layout)`: the folder of an uninterrupted run, made once."""
    made = {}

    def run(layout: str) -> Path:
        if layout not in made:
            run_dir = tmp_path_factory.mktemp("straight") / "run"
            outcome = pretrain(run_dir, corpus, *COMMON, *LAYOUTS[layout])
            assert outcome.code == 0, outcome.stderr + outcome.stdout
            made[layout] = run_dir
        return made[layout]

    return run


@dataclasses.dataclass(slots=True)
class Started:
    """A launcher and its workers."""

    launcher: subprocess.Popen
    run_dir: Path

    def wait_for(self, condition) -> None:
        """Until `condition()` holds; the run must not end before."""
        deadline = time.monotonic() + 120
        while not condition():
            assert self.launcher.poll() is None, "the run ended before it was killed"
            assert time.monotonic() < deadline
            time.sleep(0.002)

    def kill_rank(self, rank: int) -> str:
        """SIGKILL one worker; returns the launcher's line after everybody has stopped in time."""
        workers = {rank_of(pid): pid for pid in workers_of(self.launcher.pid)}
        os.kill(workers[rank], signal.SIGKILL)
        _, error = self.launcher.communicate(timeout=STOP_SECONDS)
        assert self.launcher.returncode == 1, error
        assert not [pid for pid in workers.values() if Path(f"/proc/{pid}").exists()], "a rank is still there"
        return error


def rank_of(pid: int) -> int:
    """RANK of a worker."""
    variables = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return int(next(value for name, _, value in (line.partition("=") for line in variables) if name == "RANK"))


def start_command(run_dir: Path, corpus: Path, layout: str) -> Started:
    """`loopcoder pretrain`."""
    line = command(*pretrain_arguments(run_dir, corpus, *COMMON, *LAYOUTS[layout]))
    return start(line, run_dir)


SLOW_PROGRAM = """
import sys
from functools import partial
from pathlib import Path
from launch.local import run_workers
from loopcoder_train.cli.pretrain import progress
from loopcoder_train.config.io import read_run_config
path = Path(sys.argv[1])
config = read_run_config(path)
module = "tests.integration.slow_disk"
size = config.parallel.world_size
sys.exit(run_workers(path, size, 0, path.parent / "logs", progress=partial(progress, config), module=module))
"""


def start_on_slow_disk(run_dir: Path, like: Path, *, asynchronous: bool) -> Started:
    """The launcher with `slow_disk` workers, and the configuration of the run `like`."""
    config = read_run_config(like / "run.yaml")
    checkpoint = dataclasses.replace(config.checkpoint, asynchronous=asynchronous)
    run_dir.mkdir()
    write_run_config(dataclasses.replace(config, run_dir=str(run_dir), checkpoint=checkpoint), run_dir / "run.yaml")
    return start([sys.executable, "-c", SLOW_PROGRAM, str(run_dir / "run.yaml")], run_dir)


def start(line: list[str], run_dir: Path) -> Started:
    launcher = subprocess.Popen(
        line, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    return Started(launcher, run_dir)


def half_written(run_dir: Path) -> bool:
    """Whether every rank stands in the middle of its file of SLOW_STEP."""
    files = [*run_dir.glob(f"checkpoints/step-{SLOW_STEP:08d}.tmp-*/*")]
    return len(files) == 2 and all(file.suffix == ".safetensors" and file.stat().st_size > 1000 for file in files)


def assert_tells(error: str, run_dir: Path) -> None:
    """One line: the rank, the signal, the last finished step."""
    assert error.count("\n") == 1 and "Traceback" not in error, error
    told = re.match(rf"loopcoder: error: rank 1 was killed by SIGKILL.*, after step (\d+) of {NUM_STEPS}; log: ", error)
    assert told and int(told[1]) == max(logged_steps(run_dir)), error


def assert_goes_on(run_dir: Path, corpus: Path, reference: Path, layout: str, other: str) -> Path:
    """Resume `run_dir` in its layout and a copy of it in another one; returns the copy."""
    moved = run_dir.with_name("moved")
    shutil.copytree(run_dir, moved)
    saved = find_checkpoint(run_dir).checkpoint.step
    outcome = pretrain(run_dir, corpus, *COMMON, *LAYOUTS[layout])
    assert outcome.code == 0 and f"resuming after step {saved}" in outcome.stdout, outcome.stderr + outcome.stdout
    assert losses(run_dir) == losses(reference)
    assert [checkpoint.step for checkpoint in checkpoints_of(run_dir)] == [4, 8, 12]
    assert not list(run_dir.glob("checkpoints/*.tmp-*"))
    assert_same_in_another_layout(moved, corpus, reference, other)
    return moved


def assert_same_in_another_layout(run_dir: Path, corpus: Path, reference: Path, other: str) -> None:
    """Resume `run_dir` in the layout `other`: the tokens of `reference`, and its losses up to rounding."""
    saved = find_checkpoint(run_dir).checkpoint.step
    outcome = pretrain(run_dir, corpus, *COMMON, *LAYOUTS[other])
    assert outcome.code == 0 and f"resuming after step {saved}" in outcome.stdout, outcome.stderr + outcome.stdout
    assert supervised_tokens(run_dir) == supervised_tokens(reference)
    expected, actual = losses(reference), losses(run_dir)
    compared = range(saved + 1, min(saved + SAME_STEPS, NUM_STEPS) + 1)
    assert {step: actual[step] for step in compared} == pytest.approx(
        {step: expected[step] for step in compared}, abs=1e-5
    )


@pytest.mark.parametrize(("layout", "other"), [("DP2", "one process")])
def test_a_rank_killed_in_a_step(tmp_path, corpus, straight, layout, other):
    reference, run_dir = straight(layout), tmp_path / "run"
    run = start_command(run_dir, corpus, layout)
    run.wait_for(lambda: max(logged_steps(run_dir), default=0) >= 6)
    assert_tells(run.kill_rank(1), run_dir)
    on_one = assert_goes_on(run_dir, corpus, reference, layout, other)
    # And back to two processes, from a checkpoint that one process wrote.
    back = tmp_path / "back"
    shutil.copytree(on_one, back)
    shutil.rmtree(back / f"checkpoints/step-{NUM_STEPS:08d}")
    assert_same_in_another_layout(back, corpus, on_one, "TP2 + SP")


@pytest.mark.parametrize(
    ("asynchronous", "layout", "other"),
    [(False, "TP2 + SP", "DP2"), (True, "DP2", "TP2 + SP")],
    ids=["synchronous", "asynchronous"],
)
def test_a_rank_killed_in_a_save(tmp_path, corpus, straight, asynchronous, layout, other):
    reference, run_dir = straight(layout), tmp_path / "run"
    run = start_on_slow_disk(run_dir, reference, asynchronous=asynchronous)
    run.wait_for(lambda: half_written(run_dir))
    if asynchronous:  # training goes on until the next save is due
        run.wait_for(lambda: max(logged_steps(run_dir)) >= NUM_STEPS - 1)
    error = run.kill_rank(1)
    assert_tells(error, run_dir)
    assert asynchronous or f"after step {SLOW_STEP} of" in error
    assert half_written(run_dir) and find_checkpoint(run_dir).checkpoint.step == 4
    assert_goes_on(run_dir, corpus, reference, layout, other)
