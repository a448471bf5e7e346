"""Runs whose checkpoints are written in the background: what they save, what they tell, how they end."""

import errno
import hashlib
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from loopcoder_train.checkpoint import find_checkpoint
from loopcoder_train.checkpoint import save as save_module
from loopcoder_train.config import CheckpointConfig, Precision, RunConfig, TrainingConfig, UserError
from loopcoder_train.engines.plain import PlainEngine
from loopcoder_train.model.state import TensorShard
from loopcoder_train.training import checkpoint_hook
from loopcoder_train.training import loop as loop_module
from loopcoder_train.training.accounts import Accounts
from loopcoder_train.training.checkpoint_hook import CheckpointHook
from loopcoder_train.training.loop import Hook, Run, fit
from loopcoder_train.training.metrics import METRICS_FILE, MetricsWriter, read_metrics
from loopcoder_train.training.progress import PlainConsole
from tests.unit.training.fakes import BATCH, SEQUENCE_LENGTH, TINY, FakeEngine, data_from

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[3]


class Disk:
    """The disk of the run: slow while `ready` is not set, full for the files named in `full_for`."""

    def __init__(self) -> None:
        self.ready, self.full_for = threading.Event(), set()
        self.arrived: list[int] = []
        self._write = save_module.write_tensors

    def write(self, path, tensors):
        step = int(path.parent.name.split("-")[1].split(".")[0])
        self.arrived.append(step)
        assert self.ready.wait(30)
        if step in self.full_for:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self._write(path, tensors)


@pytest.fixture
def disk(monkeypatch):
    disk = Disk()
    monkeypatch.setattr(save_module, "write_tensors", disk.write)
    yield disk
    disk.ready.set()


class At(Hook):
    """Does something after a step."""

    def __init__(self, step, action) -> None:
        self.step, self.action = step, action

    def after_step(self, run, step):
        if step.number == self.step:
            self.action()


def train(run_dir, *others, engine=None, num_steps=6, every_steps=4, asynchronous=True, behind=None):
    """A run from step 0; `others` are hooks in front of the one that saves, `behind(saving)` those behind it."""
    run_dir.mkdir(exist_ok=True)
    with MetricsWriter(run_dir / METRICS_FILE) as metrics, (run_dir / "console").open("w") as console:
        run = Run(
            run_dir=run_dir,
            engine=engine or FakeEngine(),
            data=data_from(0),
            learning_rate=lambda tokens: 0.05,
            num_steps=num_steps,
            batch_tokens=lambda batch: BATCH * SEQUENCE_LENGTH,
            metrics=metrics,
            console=PlainConsole(console),
        )
        saving = CheckpointHook(
            CheckpointConfig(every_steps=every_steps, asynchronous=asynchronous),
            CPU,
            stream_state=lambda batches: {"position": batches * BATCH},
            logger_run_ids={},
            options={},
        )
        return fit(run, [*others, saving, *(behind(saving) if behind else [])])


def events(run_dir, name=None):
    found = read_metrics(run_dir / METRICS_FILE, ["event"])
    return [event for event in found if name in (None, event["event"])]


def hashes(run_dir, step):
    folder = run_dir / "checkpoints" / f"step-{step:08d}"
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.mark.parametrize("precision", Precision)
def test_steps_during_the_write_change_no_byte(tmp_path, disk, precision, monkeypatch):
    """Step 4 is written while 5 and 6 overwrite weights and moments in place: the same files as a synchronous save."""
    # What the two runs took is saved too, and differs: the clocks stand still.
    monkeypatch.setattr(loop_module, "time", SimpleNamespace(perf_counter=lambda: 0.0))
    monkeypatch.setattr(Accounts, "running_seconds", 0.0)
    training = TrainingConfig(num_steps=6, global_batch_size=BATCH, micro_batch_size=BATCH, precision=precision)
    config = RunConfig(run_dir="unused", model=replace(TINY, num_loops=2), training=training)

    def release():
        assert disk.arrived == [4], "the write had not begun while steps were made"
        disk.ready.set()

    train(tmp_path / "asynchronous", At(6, release), engine=PlainEngine(config, CPU))
    torch.manual_seed(0)  # every rank's generators are saved too
    train(tmp_path / "synchronous", engine=PlainEngine(config, CPU), asynchronous=False)
    assert hashes(tmp_path / "asynchronous", 4) == hashes(tmp_path / "synchronous", 4)
    assert (
        hashes(tmp_path / "asynchronous", 6)
        == hashes(tmp_path / "synchronous", 6)
        != hashes(tmp_path / "synchronous", 4)
    )


def test_the_loop_goes_on_while_the_thread_writes_and_tells_afterwards(tmp_path, disk):
    told = []
    train(
        tmp_path,
        At(6, lambda: told.extend(events(tmp_path))),
        At(6, disk.ready.set),
        At(7, lambda: wait_for(lambda: find_checkpoint(tmp_path).checkpoint)),
        num_steps=7,
    )
    assert told == []  # two steps after it was due nothing is said, as nothing is saved
    first, last = events(tmp_path, "saved")
    assert (first["checkpoint_step"], first["step"]) == (4, 7) and (last["checkpoint_step"], last["step"]) == (7, 7)
    assert first["stall_seconds"] < first["save_seconds"]
    assert last["stall_seconds"] > last["save_seconds"] / 2, "the end of the run waits"


def wait_for(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_next_save_waits_for_the_former_and_says_so(tmp_path, disk, monkeypatch):
    monkeypatch.setattr(checkpoint_hook, "NOTICEABLE_SECONDS", 0.2)
    train(tmp_path, At(8, threading.Timer(0.3, disk.ready.set).start), num_steps=8)
    (waited,) = events(tmp_path, "save_waited")
    assert waited["step"] == 8 and waited["waited_seconds"] > 0.2 and "checkpoint of step 4" in waited["message"]
    assert "WARNING: training waited" in (tmp_path / "console").read_text()
    first, second = events(tmp_path, "saved")
    assert first["stall_seconds"] > 0.2 > second["stall_seconds"], "waiting counts for the save that was waited for"
    assert disk.arrived == [4, 8]


def test_a_full_disk_is_told_at_a_later_step_and_the_last_good_one_stays(tmp_path, disk):
    disk.full_for.add(8)
    train(tmp_path, At(5, disk.ready.set), num_steps=12)
    (failed,) = events(tmp_path, "save_failed")
    assert failed["checkpoint_step"] == 8 and failed["step"] > 8
    assert (
        "No space left" in failed["message"] and "training goes on, last good checkpoint: step 4" in failed["message"]
    )
    assert "ERROR: checkpoint of step 8" in (tmp_path / "console").read_text()
    assert [event["checkpoint_step"] for event in events(tmp_path, "saved")] == [4, 12]


def test_a_full_disk_at_the_end_is_an_error(tmp_path, disk):
    disk.full_for.add(6)
    with pytest.raises(UserError, match=r"last step 6 .*No space left.*last good checkpoint: step 4"):
        train(tmp_path, At(5, disk.ready.set))
    assert find_checkpoint(tmp_path).checkpoint.step == 4


class WrongEngine(FakeEngine):
    """Forgets an element of its weight."""

    def state_shards(self, *, loading):
        return [TensorShard("model/weight", (2,), (0,), self.weight)]


@pytest.mark.parametrize("num_steps", [20, 39], ids=["at the end", "at a step boundary"])
def test_a_mistake_of_the_engine_ends_the_run(tmp_path, num_steps):
    engine = WrongEngine()
    slow = [At(step, lambda: time.sleep(0.05)) for step in range(21, num_steps)]
    with pytest.raises(AssertionError, match=r"model/weight: .*has 1 of 2 elements"):
        train(tmp_path, *slow, engine=engine, num_steps=num_steps, every_steps=20)
    assert engine.steps == 20 if num_steps == 20 else engine.steps < num_steps
    assert find_checkpoint(tmp_path).checkpoint is None


class BrokenError(Exception):
    pass


def fail():
    raise BrokenError


def test_a_run_that_breaks_still_finishes_the_save_in_flight(tmp_path, disk):
    with pytest.raises(BrokenError):
        train(tmp_path, At(5, threading.Timer(0.1, disk.ready.set).start), At(5, fail))
    assert [event["checkpoint_step"] for event in events(tmp_path, "saved")] == [4]
    assert find_checkpoint(tmp_path).checkpoint.step == 4


def test_a_run_that_breaks_does_not_wait_long_for_a_save_that_hangs(tmp_path, disk, monkeypatch):
    monkeypatch.setattr(checkpoint_hook, "CLOSE_SECONDS", 0.1)
    began = time.monotonic()
    with pytest.raises(BrokenError):
        train(tmp_path, At(5, fail))
    assert time.monotonic() - began < 5
    assert "ERROR: the checkpoint of step 4 was still being written" in (tmp_path / "console").read_text()


@pytest.mark.parametrize("mistake", [True, False], ids=["a mistake", "a full disk"])
def test_what_the_save_in_flight_met_is_told_beside_the_error_that_ends_the_run(tmp_path, disk, mistake):
    disk.full_for.add(4)
    disk.ready.set()
    with pytest.raises(BrokenError):
        train(tmp_path, At(5, fail), engine=WrongEngine() if mistake else None)
    told = (tmp_path / "console").read_text()
    assert ("AssertionError: model/weight" in told) if mistake else ("No space left" in told), told
    assert "training goes on" not in told


BREAK_WHILE_WRITING = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
from loopcoder_train.checkpoint import save
from loopcoder_train.training import checkpoint_hook
from loopcoder_train.training import loop as loop_module
from loopcoder_train.training.accounts import Accounts
from tests.unit.training.test_async_checkpoints import At, fail, train
save.write_tensors = lambda path, tensors: time.sleep(600)
checkpoint_hook.CLOSE_SECONDS = 0.2
train(Path(sys.argv[1]), At(5, fail))
"""


def test_a_process_ends_while_its_thread_hangs(tmp_path):
    line = [sys.executable, "-c", BREAK_WHILE_WRITING, str(tmp_path)]
    result = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 1 and result.stderr.rstrip().endswith("BrokenError"), result.stderr
