"""One writer per run_dir, whatever happens to the others."""

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from loopcoder_train.config.errors import UserError
from loopcoder_train.runtime.lock import RunLock

HOLD = """
import sys, time
from loopcoder_train.runtime.lock import RunLock
RunLock(sys.argv[1]).acquire()
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_second_is_refused_naming_the_first(tmp_path, holder):
    started = time.monotonic()
    with pytest.raises(UserError) as caught:
        RunLock(tmp_path / "run").acquire(wait_seconds=0.3)
    assert 0.3 <= time.monotonic() - started < 5
    message = str(caught.value)
    assert f"process {holder.pid} on {os.uname().nodename}" in message and str(tmp_path / "run") in message


def test_kill_releases(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    with RunLock(tmp_path / "run"):
        pass


def test_waits_for_the_one_that_ends(tmp_path):
    first = RunLock(tmp_path).acquire()
    threading.Timer(0.3, first.release).start()
    RunLock(tmp_path).acquire(wait_seconds=10).release()


def test_names_are_different_locks_and_folder_is_made(tmp_path):
    with RunLock(tmp_path / "a/b"), RunLock(tmp_path / "a/b", name="launcher"):
        assert sorted(path.name for path in (tmp_path / "a/b").iterdir()) == [".launcher.lock", ".run.lock"]


def test_released_lock_can_be_taken_again(tmp_path):
    lock = RunLock(tmp_path)
    for _ in range(2):
        with lock, pytest.raises(UserError):
            RunLock(tmp_path).acquire(wait_seconds=0)
    lock.release()


def test_forked_child_does_not_keep_the_lock(tmp_path):
    lock = RunLock(tmp_path).acquire()
    child = os.fork()
    if child == 0:
        time.sleep(30)
        os._exit(0)
    try:
        lock.release()
        RunLock(tmp_path).acquire(wait_seconds=5).release()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_lock_of_a_renamed_folder_is_not_taken_for_the_new_one(tmp_path, monkeypatch):
    run_dir = tmp_path / "run"
    first = RunLock(run_dir).acquire()
    flock = fcntl.flock

    def renamed_in_between(file, how):
        # The second has opened the file; now the first moves on, and the lock of the old file becomes free.
        monkeypatch.setattr(fcntl, "flock", flock)
        run_dir.rename(tmp_path / "run.old-1")
        first.move_to_new_folder()
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", renamed_in_between)
    with pytest.raises(UserError, match="is in use by"):
        RunLock(run_dir).acquire(wait_seconds=0.3)
    assert (run_dir / ".run.lock").exists() and (tmp_path / "run.old-1/.run.lock").exists()
    first.release()
    RunLock(run_dir).acquire(wait_seconds=0).release()


def test_unusable_folder_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file/below", "/proc/none"):
        with pytest.raises(UserError, match="cannot be used"):
            RunLock(path).acquire(wait_seconds=5)
