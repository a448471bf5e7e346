"""Kill -9 of one rank, in a step or in a save: all ranks stop, one line says who and when, and the run goes on.

In the layout it had the losses are those of an uninterrupted run, bit for bit; in another one the tokens are, and the
losses up to rounding.

The runs are made once, by the fixture `made`, several in the same processes: starting them is what costs time. Another
layout of two processes is one more line in TWO_PROCESSES.
"""

import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from loopcoder_train.checkpoint import checkpoints_of, find_checkpoint
from loopcoder_train.config import ParallelConfig
from loopcoder_train.training.metrics import METRICS_FILE, read_metrics
from tests.integration.conftest import (
    NUM_STEPS,
    ROOT,
    base_config,
    environment,
    logged_steps,
    losses,
    rank_of,
    run_in_turn,
    supervised_tokens,
    workers_of,
    write_config,
)
from tests.integration.stuck_worker import STUCK_SAVE, STUCK_STEP, VARIABLE

pytestmark = pytest.mark.timeout(1200)  # the fixture, on a machine that is busy with other things
TWO_PROCESSES = {
    "DP2": {"world_size": 2, "distributed_optimizer": True},
    "TP2 + SP": {"tensor_parallel_size": 2, "sequence_parallel": True},
    "PP2": {"pipeline_parallel_size": 2},
    "CP2": {"context_parallel_size": 2},
}
LAYOUTS = {"one process": {}, **TWO_PROCESSES}
# What was going on when rank 1 was killed -> the layout of that run.
KILLED = {"step": "PP2", "synchronous save": "TP2 + SP", "asynchronous save": "DP2"}
FP32 = "training.precision=fp32"
STOP_SECONDS = 60.0  # within which all ranks are gone; measured: 1 to 3
SAME_STEPS = 5  # after which Adam's eps of 1e-15 has turned rounding into whole steps


@dataclasses.dataclass(slots=True)
class Made:
    """The runs of this module."""

    folder: Path
    lines: dict[str, str]  # killed in -> what the launcher said
    seconds: dict[str, float]  # killed in -> until all had stopped

    def straight(self, layout: str) -> Path:
        """An uninterrupted run."""
        return self.folder / f"straight {layout}"

    def killed(self, during: str) -> Path:
        """What the kill left."""
        return self.folder / f"killed {during}"

    def resumed(self, during: str, layout: str) -> Path:
        """Resumed from that, in `layout`."""
        return self.folder / f"killed {during}, {layout}"

    def from_one_process(self, layout: str) -> Path:
        """Resumed in `layout` from a checkpoint that one process wrote."""
        return self.folder / f"from one process, {layout}"


@pytest.fixture(scope="module")
def made(tmp_path_factory, corpus) -> Made:
    """Uninterrupted runs; runs that are killed; those resumed in every layout."""
    made = Made(tmp_path_factory.mktemp("runs"), {}, {})
    base = base_config(made.folder, corpus, FP32)

    def config(run_dir: Path, layout: str, **changes: object) -> Path:
        return write_config(base, run_dir, parallel=ParallelConfig(**LAYOUTS[layout]), **changes)

    run_in_turn(2, *(config(made.straight(layout), layout) for layout in TWO_PROCESSES))
    for during, layout in KILLED.items():
        run_dir = made.killed(during)
        checkpoint = dataclasses.replace(base.checkpoint, asynchronous=during != "synchronous save")
        kill(made, during, start(config(run_dir, layout, checkpoint=checkpoint), during))
        for other in LAYOUTS:
            shutil.copytree(run_dir, made.resumed(during, other))

    run_in_turn(1, *(config(made.resumed(during, "one process"), "one process") for during in KILLED))
    for layout in TWO_PROCESSES:
        back = made.from_one_process(layout)
        shutil.copytree(made.resumed("step", "one process"), back)
        shutil.rmtree(back / f"checkpoints/step-{NUM_STEPS:08d}")
    resumed = [config(made.resumed(during, layout), layout) for during in KILLED for layout in TWO_PROCESSES]
    run_in_turn(2, *resumed, *(config(made.from_one_process(layout), layout) for layout in TWO_PROCESSES))
    return made


LAUNCHER = """
import sys
from functools import partial
from pathlib import Path
from launch.local import run_workers
from loopcoder_train.cli.pretrain import progress
from loopcoder_train.config.io import read_run_config
path = Path(sys.argv[1])
config = read_run_config(path)
module = "tests.integration.stuck_worker"
size = config.parallel.world_size
sys.exit(run_workers(path, size, 0, path.parent / "logs", progress=partial(progress, config), module=module))
"""


def start(run_yaml: Path, during: str) -> subprocess.Popen:
    """What the command starts, with workers that get stuck; returns when they are."""
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, str(run_yaml)],
        cwd=ROOT,
        env=environment() | {VARIABLE: during.split()[-1]},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    run_dir = run_yaml.parent
    if during == "step":
        wait_for(launcher, lambda: checkpoints_of(run_dir) and max(logged_steps(run_dir)) == STUCK_STEP - 1)
    else:
        wait_for(launcher, lambda: half_written(run_dir))
    if during == "asynchronous save":  # training goes on until the next save is due
        wait_for(launcher, lambda: max(logged_steps(run_dir)) >= NUM_STEPS - 1)
    return launcher


def wait_for(launcher: subprocess.Popen, condition) -> None:
    """Until `condition()` holds; the run cannot go on far from there."""
    deadline = time.monotonic() + 300
    while not condition():
        assert launcher.poll() is None, "the run ended by itself"
        assert time.monotonic() < deadline
        time.sleep(0.01)


def half_written(run_dir: Path) -> bool:
    """Whether every rank stands in the middle of its file of STUCK_SAVE."""
    files = [*run_dir.glob(f"checkpoints/step-{STUCK_SAVE:08d}.tmp-*/*")]
    return len(files) == 2 and all(file.suffix == ".safetensors" and file.stat().st_size > 1000 for file in files)


def kill(made: Made, during: str, launcher: subprocess.Popen) -> None:
    """SIGKILL rank 1; everybody must stop in time."""
    workers = {rank_of(pid): pid for pid in workers_of(launcher.pid)}
    began = time.monotonic()
    os.kill(workers[1], signal.SIGKILL)
    _, made.lines[during] = launcher.communicate(timeout=STOP_SECONDS)
    made.seconds[during] = time.monotonic() - began
    assert launcher.returncode == 1, made.lines[during]
    assert not [pid for pid in workers.values() if Path(f"/proc/{pid}").exists()], "a rank is still there"


def resumed_after(run_dir: Path) -> int:
    """The step from which the last attempt went on."""
    events = read_metrics(run_dir / METRICS_FILE, ["event"])
    return [event["step"] for event in events if event["event"] == "resumed"][-1]


def others(*, than: str) -> Iterator[str]:
    return (layout for layout in LAYOUTS if layout != than)


@pytest.mark.parametrize("during", KILLED)
def test_all_ranks_stop_and_one_line_says_who_and_when(made, during):
    line, last = made.lines[during], max(logged_steps(made.killed(during)))
    assert line.count("\n") == 1 and "Traceback" not in line, line
    told = re.match(rf"loopcoder: error: rank 1 was killed by SIGKILL.*, after step (\d+) of {NUM_STEPS}; log: ", line)
    assert told and int(told[1]) == last, line
    assert made.seconds[during] < STOP_SECONDS
    assert last in {"step": [STUCK_STEP - 1], "synchronous save": [STUCK_SAVE]}.get(during, [NUM_STEPS - 1, NUM_STEPS])


@pytest.mark.parametrize("during", KILLED)
def test_a_killed_save_leaves_the_checkpoint_before_it(made, during):
    found = find_checkpoint(made.killed(during))
    assert not found.damaged and found.checkpoint.step == 4
    assert half_written(made.killed(during)) == (during != "step")


@pytest.mark.parametrize("during", KILLED)
def test_the_same_layout_goes_on_bit_for_bit(made, during):
    run_dir = made.resumed(during, KILLED[during])
    assert resumed_after(run_dir) == find_checkpoint(made.killed(during)).checkpoint.step
    assert losses(run_dir) == losses(made.straight(KILLED[during]))
    assert [checkpoint.step for checkpoint in checkpoints_of(run_dir)] == [4, 8, 12]
    assert not list(run_dir.glob("checkpoints/*.tmp-*"))


@pytest.mark.parametrize(
    ("during", "layout"), [(during, layout) for during in KILLED for layout in others(than=KILLED[during])]
)
def test_another_layout_goes_on_with_the_same_tokens(made, during, layout):
    assert resumed_after(made.resumed(during, layout)) == find_checkpoint(made.killed(during)).checkpoint.step
    assert_same_up_to_rounding(made.resumed(during, layout), made.straight(KILLED[during]))


@pytest.mark.parametrize("layout", TWO_PROCESSES)
def test_two_processes_go_on_from_one(made, layout):
    assert resumed_after(made.from_one_process(layout)) == 8
    assert_same_up_to_rounding(made.from_one_process(layout), made.resumed("step", "one process"))


def assert_same_up_to_rounding(run_dir: Path, reference: Path) -> None:
    """The tokens of `reference`, and for some steps its losses."""
    assert supervised_tokens(run_dir) == supervised_tokens(reference)
    expected, actual, first = losses(reference), losses(run_dir), resumed_after(run_dir) + 1
    compared = range(first, min(first + SAME_STEPS, NUM_STEPS + 1))
    assert [actual[step] for step in compared] == pytest.approx([expected[step] for step in compared], abs=1e-5)
