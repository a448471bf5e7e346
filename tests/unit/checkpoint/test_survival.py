"""Killed anywhere in a save, or refused by the disk: the last good checkpoint is there, complete, and found."""

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch

from loopcoder_train.checkpoint import Checkpoint, NoRoom, SaveFailed, checkpoints_of, find_checkpoint
from loopcoder_train.checkpoint import save as save_module
from tests.unit.checkpoint.builders import (
    assert_holds,
    cut,
    save_on_ranks,
    save_step,
    save_step_in_a_thread,
    tensors_of,
)

_FILE_EVENTS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.scandir", "shutil.rmtree")


@pytest.fixture
def memory_path(tmp_path):
    """A folder in memory where there is one: SIGKILL does not care about the disk, and fsync is free there."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


def in_child(action):
    """Run `action` in a forked process (torch is loaded already); returns its wait status."""
    pid = os.fork()
    if pid == 0:
        try:
            action()
        finally:
            os._exit(0)
    return os.waitpid(pid, 0)[1]


def save_killed_at(run_dir, step, event_number, save=save_step):
    """Save in a child that SIGKILLs itself at the n-th file operation; whether it was killed before the end."""

    def action():
        seen = 0

        def count(event, arguments):
            nonlocal seen
            if event in _FILE_EVENTS and any(str(run_dir) in str(argument) for argument in arguments):
                seen += 1
                if seen == event_number:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        save(run_dir, step, keep_last=2)

    return os.WIFSIGNALED(in_child(action))


@pytest.mark.parametrize(
    ("again", "save"),
    [(False, save_step), (True, save_step), (False, save_step_in_a_thread)],
    ids=["next step", "same step again", "next step, asynchronous"],
)
def test_sigkill_at_every_file_operation_of_a_save(memory_path, again, save):
    """Not random moments but all of them: before every open, rename, removal that a save does."""
    event_number, committed_late = 0, 0
    while True:
        event_number += 1
        run_dir = memory_path / str(event_number)
        save_step(run_dir, 1)
        save_step(run_dir, 2)
        step = 2 if again else 3
        killed = save_killed_at(run_dir, step, event_number, save)
        found = find_checkpoint(run_dir)
        assert found.checkpoint.step in (2, step) and not found.damaged, (event_number, found)
        assert_holds(found.checkpoint, found.checkpoint.step)
        pruned = run_dir / "checkpoints/step-00000001"
        if pruned.exists():  # then all of it, whatever the order in which files are deleted
            Checkpoint(pruned).verify()
        committed_late += found.checkpoint.step == 3
        assert_next_save_cleans_up(run_dir)
        if not killed:
            break
    assert event_number > 25  # the hook did see the save
    assert again or committed_late > 3  # kills after COMMIT keep the new checkpoint


def assert_next_save_cleans_up(run_dir):
    save_step(run_dir, 4, keep_last=2)
    names = sorted(path.name for path in (run_dir / "checkpoints").iterdir())
    assert len(names) == 3 and names[0] == "latest" and names[2] == "step-00000004", names
    for checkpoint in checkpoints_of(run_dir):
        checkpoint.verify()


def test_killed_twice_while_saving_the_same_step_again(memory_path):
    """The good one was put aside, and the job that should bring it back is killed as well."""
    for first in range(1, 60, 8):
        run_dir = memory_path / str(first)
        save_step(run_dir, 2)
        save_killed_at(run_dir, 2, first)
        for second in range(1, 12, 2):
            save_killed_at(run_dir, 2, second)
            assert_holds(find_checkpoint(run_dir).checkpoint, 2)


_SAVE_FOREVER = """
import sys
from pathlib import Path
from tests.unit.checkpoint.builders import save_step
for step in range(1, 10_000):
    save_step(Path(sys.argv[1]), step, keep_last=2)
    print(step, flush=True)
"""


def test_kill_9_of_a_process_at_random_moments(memory_path):
    log = memory_path / "log"
    random.seed(0)
    for attempt in range(3):
        run_dir = memory_path / str(attempt)
        with log.open("wb") as output:
            child = subprocess.Popen([sys.executable, "-c", _SAVE_FOREVER, str(run_dir)], stdout=output)
        while not log.read_bytes().endswith(b"\n") and child.poll() is None:
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.2))
        child.kill()
        child.wait()
        announced = int(log.read_text().splitlines()[-1])
        found = find_checkpoint(run_dir)
        assert found.checkpoint.step in (announced, announced + 1) and not found.damaged
        assert_holds(found.checkpoint, found.checkpoint.step)


@contextlib.contextmanager
def small_disk(path, size, options=""):
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}{options}", "tmpfs", str(path)]
    try:
        mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("no mount command: a really full disk cannot be made here")
    if mounted.returncode:
        pytest.skip(f"mount is not permitted here ({mounted.stderr.strip()}): needs root")
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


def test_full_disk_fails_on_every_rank_and_keeps_the_last_good_one(tmp_path, monkeypatch):
    monkeypatch.setattr(save_module, "shortage", lambda folder, needed: None)  # it fills up while it is being written
    with small_disk(tmp_path / "disk", "1m") as disk:
        save_step(disk, 1)
        big = cut("w", torch.zeros(300_000), "rows", 3)  # 0.4 MB per rank: the third does not fit
        outcomes = save_on_ranks(disk, 2, big)
        assert all(type(outcome) is SaveFailed for outcome in outcomes), outcomes
        assert len({str(outcome) for outcome in outcomes}) == 1
        assert "step 2 was not saved" in str(outcomes[0]) and "No space left on device" in str(outcomes[0])
        assert "\n" not in str(outcomes[0])
        assert_only(disk, "step-00000001")
        save_step(disk, 3)  # with room again, saving goes on
        assert_holds(find_checkpoint(disk).checkpoint, 3)


def test_a_checkpoint_that_does_not_fit_is_not_begun(tmp_path, monkeypatch):
    with small_disk(tmp_path / "disk", "1m") as disk:
        assert save_step(disk, 1).next_shortage is None
        monkeypatch.setattr(save_module, "write_tensors", None)  # calling it would be a TypeError
        outcomes = save_on_ranks(disk, 2, cut("w", torch.zeros(300_000), "rows", 3))
        assert all(type(outcome) is NoRoom for outcome in outcomes), outcomes
        needed, free = outcomes[0].shortage.needed_bytes, outcomes[0].shortage.free_bytes
        assert 1_200_000 < needed < 1_300_000 and free <= 2**20
        assert f"step 2 was not begun: it needs {needed:,} bytes, {free:,} are free" in str(outcomes[0])
        assert_only(disk, "step-00000001")
        assert_holds(find_checkpoint(disk).checkpoint, 1)


def test_a_save_tells_that_the_next_one_will_not_fit(tmp_path):
    with small_disk(tmp_path / "disk", "1m") as disk:
        outcomes = save_on_ranks(disk, 2, cut("w", torch.zeros(150_000), "rows", 3))
        told = outcomes[0].next_shortage
        assert told.needed_bytes == outcomes[0].total_bytes > told.free_bytes > 0


def test_what_is_asked_for_is_what_a_checkpoint_takes(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(save_module, "shortage", lambda folder, needed: asked.append(needed))
    report = save_step(tmp_path, 1)
    assert report.total_bytes <= asked[0] <= report.total_bytes + 65_536 + 512 * len(tensors_of(1))


def test_leftovers_of_a_killed_save_do_not_cost_the_next_one_its_room(tmp_path):
    with small_disk(tmp_path / "disk", "1m") as disk:
        save_step(disk, 1)
        stale = disk / "checkpoints/step-00000002.tmp-0123456789ab"
        stale.mkdir()
        with contextlib.suppress(OSError):
            (stale / "tensors-00000-of-00001.safetensors").write_bytes(b"x" * 2**21)
        save_step(disk, 3)
        assert_holds(find_checkpoint(disk).checkpoint, 3)


def test_full_disk_at_every_size(tmp_path):
    """Whatever file of the save is the one that no longer fits."""
    with small_disk(tmp_path / "disk", "1m") as disk:
        save_step(disk, 1)
        failures = 0
        for free in range(0, 80_000, 4096):
            ballast = disk / "ballast"
            with contextlib.suppress(OSError):
                ballast.write_bytes(b"\1" * 2**21)  # fills the disk
            os.truncate(ballast, max(0, ballast.stat().st_size - free))
            try:
                save_step(disk, 2)
            except SaveFailed:
                failures += 1
                assert_holds(find_checkpoint(disk).checkpoint, 1)
                assert_only(disk, "step-00000001")
            ballast.unlink()
        assert failures >= 4
        save_step(disk, 2)
        assert_holds(find_checkpoint(disk).checkpoint, 2)


def assert_only(run_dir, name):
    assert {path.name for path in (run_dir / "checkpoints").iterdir()} == {name, "latest"}
    assert (run_dir / "checkpoints/latest").read_text() == f"{name}\n"
    assert find_checkpoint(run_dir).rejected == []


def test_read_only_disk(tmp_path):
    with small_disk(tmp_path / "disk", "1m") as disk:
        save_step(disk, 1)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(SaveFailed, match="Read-only file system"):
            save_step(disk, 2)
        assert_holds(find_checkpoint(disk).checkpoint, 1)


@pytest.mark.parametrize("failing_call", range(1, 12))
def test_a_failing_fsync_anywhere(tmp_path, monkeypatch, failing_call):
    """An I/O error that the disk reports late: before COMMIT is durable it fails the save, after it is a warning."""
    save_step(tmp_path, 1)
    calls, fsync = 0, os.fsync

    def failing(descriptor):
        nonlocal calls
        calls += 1
        if calls == failing_call:
            raise OSError(5, "Input/output error")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    try:
        report = save_step(tmp_path, 2)
    except SaveFailed as error:
        assert "Input/output error" in str(error)
        assert_only(tmp_path, "step-00000001")
    else:
        assert report.warnings or calls < failing_call
        assert_holds(find_checkpoint(tmp_path).checkpoint, 2)


def test_former_checkpoint_of_the_step_comes_back_when_its_replacement_fails(tmp_path, monkeypatch):
    save_step(tmp_path, 1)

    def refuse(path, content):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("loopcoder_train.checkpoint.durable.replace_durably", refuse)
    with pytest.raises(SaveFailed):
        save_step(tmp_path, 1)
    assert_only(tmp_path, "step-00000001")
    assert_holds(find_checkpoint(tmp_path).checkpoint, 1)


def test_what_does_not_read_back_is_not_committed(tmp_path, monkeypatch):
    """A disk that loses a byte between write and read-back."""
    from loopcoder_train.checkpoint import save

    save_step(tmp_path, 1)
    write = save.write_tensors

    def write_then_damage(path, tensors):
        record = write(path, tensors)
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        return record

    monkeypatch.setattr(save, "write_tensors", write_then_damage)
    outcomes = save_on_ranks(tmp_path, 2, cut("w", torch.ones(4), "rows", 2))
    assert all(isinstance(outcome, SaveFailed) and "SHA-256" in str(outcome) for outcome in outcomes)
    assert_only(tmp_path, "step-00000001")


def test_a_file_system_that_is_not_shared_is_noticed(tmp_path, monkeypatch):
    """Rank 1 writes to its own disk: its file is missing where rank 0 commits."""
    from loopcoder_train.checkpoint import save

    write = save.write_tensors

    def write_elsewhere(path, tensors):
        return write(tmp_path / path.name if "00001-of" in path.name else path, tensors)

    monkeypatch.setattr(save, "write_tensors", write_elsewhere)
    monkeypatch.setattr(save, "check_hash", lambda folder, record: None)
    outcomes = save_on_ranks(tmp_path / "run", 2, cut("w", torch.ones(4), "rows", 2))
    assert all(isinstance(outcome, SaveFailed) and "is missing" in str(outcome) for outcome in outcomes)


def test_data_reaches_the_disk_before_its_name_and_its_name_before_latest(tmp_path, monkeypatch):
    """A power cut cannot be staged here, so the order of fsync and rename is checked instead."""
    save_step(tmp_path, 1)
    events, fsync, rename, replace = [], os.fsync, Path.rename, Path.replace

    def record_fsync(descriptor):
        events.append(("fsync", Path(f"/proc/self/fd/{descriptor}").readlink().name))
        fsync(descriptor)

    def record(change):
        def recording(self, target):
            events.append(("rename", Path(target).name))
            return change(self, target)

        return recording

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(Path, "rename", record(rename))
    monkeypatch.setattr(Path, "replace", record(replace))
    report = save_step(tmp_path, 2)
    order = [
        {("fsync", path.name) for path in report.path.iterdir() if path.name != "COMMIT"},
        [("fsync", "step-00000002.tmp-"), ("rename", "step-00000002"), ("fsync", "checkpoints")],
        [("fsync", "COMMIT.tmp"), ("rename", "COMMIT"), ("fsync", "step-00000002")],
        [("fsync", "latest.tmp"), ("rename", "latest"), ("fsync", "checkpoints")],
    ]
    events = [(kind, re.sub(r"tmp-.*", "tmp-", name)) for kind, name in events]
    files = len(order[0])
    assert set(events[:files]) == order[0]
    assert events[files:] == [event for part in order[1:] for event in part]


def test_stale_temporary_folders_go_at_the_next_save(tmp_path):
    save_step(tmp_path, 1)
    folder = tmp_path / "checkpoints"
    (folder / "step-00000002.tmp-0123456789ab").mkdir()
    (folder / "step-00000002.tmp-0123456789ab/tensors-00000-of-00001.safetensors").write_bytes(b"x" * 100)
    (folder / "latest.tmp").write_text("torn")
    (folder / "notes of the user").mkdir()
    assert find_checkpoint(tmp_path).rejected == []
    save_step(tmp_path, 3)
    names = {path.name for path in folder.iterdir()}
    assert names == {"step-00000001", "step-00000003", "latest", "notes of the user"}
