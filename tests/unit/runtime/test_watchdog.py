"""Processes that hang, that only look so, and what is said about their partners."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from loopcoder_train.runtime.heartbeat import Heart
from loopcoder_train.runtime.partners import Partners, Seen
from loopcoder_train.runtime.watchdog import describe

ROOT = Path(__file__).parents[3]
PRELUDE = """
import sys, time, threading
from loopcoder_train.runtime.heartbeat import beat, enter
from loopcoder_train.runtime.watchdog import Watchdog
"""


def run(code, tmp_path, timeout=60):
    """A process of its own; its exit code, stderr, record and seconds since it said "ready"."""
    record = tmp_path / "error.json"
    environment = os.environ | {"TORCHELASTIC_ERROR_FILE": str(record)}
    process = subprocess.Popen(
        [sys.executable, "-c", PRELUDE + code], cwd=ROOT, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    began = time.monotonic()
    _, err = process.communicate(timeout=timeout)
    message = json.loads(record.read_text())["message"]["message"] if record.exists() else None
    return process.returncode, err, message, time.monotonic() - began


def test_a_hang_ends_with_stacks_and_a_record_of_where_it_was(tmp_path):
    code = """
def a_partner_that_never_comes():
    threading.Event().wait()
with Watchdog(1.0):
    enter("step 7, waiting for data")
    print("ready", flush=True)
    a_partner_that_never_comes()
"""
    exit_code, err, message, seconds = run(code, tmp_path)
    assert exit_code == 1 and 0.9 < seconds < 10
    assert message.startswith("HangError: no progress for 1 s in step 7, waiting for data")
    assert "a_partner_that_never_comes" in err and "Thread" in err and "stacks of all threads" in err


def test_whoever_gets_on_lives(tmp_path):
    code = """
with Watchdog(1.0):
    print("ready", flush=True)
    for _ in range(30):
        time.sleep(0.1)
        beat()
"""
    assert run(code, tmp_path)[:3] == (0, "", None)


def test_after_the_block_nobody_watches(tmp_path):
    code = """
with Watchdog(0.3):
    print("ready", flush=True)
time.sleep(1.5)
"""
    assert run(code, tmp_path)[:3] == (0, "", None)


def test_a_process_that_was_stopped_and_goes_on_is_not_taken_for_hung(tmp_path):
    code = """
with Watchdog(2.0):
    print("ready", flush=True)
    time.sleep(1.0)
    beat()
    time.sleep(1.0)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", PRELUDE + code], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout.readline() == "ready\n"
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(5)
    os.kill(process.pid, signal.SIGCONT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0, err


def test_a_hang_that_keeps_the_interpreters_lock_leaves_its_stack(tmp_path):
    """The thread cannot run then: C writes the stack, and the partners see no heartbeat."""
    code = """
import ctypes
with Watchdog(0.5):
    time.sleep(0.2)
    print("ready", flush=True)
    ctypes.PyDLL(None).sleep(3)  # PyDLL keeps the lock
"""
    exit_code, err, _, seconds = run(code, tmp_path)
    assert exit_code == 0 and seconds > 2.5
    assert "Timeout" in err and "most recent call first" in err


def seen(rank, phase="step 3", published_at=100.0) -> Seen:
    return Seen(rank, f"node{rank}", 40 + rank, phase, beats=1, published=1, published_at=published_at, moved_at=50.0)


@pytest.mark.parametrize(
    ("partners", "said"),
    [
        ([seen(0), seen(1)], "all 2 ranks answer and are there"),
        (
            [seen(0), seen(1, "step 2", published_at=90.0), seen(2)],
            "rank 1 (node1, process 41) does not answer, it was last in step 2",
        ),
        (
            [seen(0), seen(1), seen(2, "the evaluation")],
            "2 of 3 ranks are in step 3, but rank 2 (node2, process 42) is in the evaluation",
        ),
        (
            [seen(0, published_at=90.0), seen(1, published_at=90.0)],
            "who holds it up is not known: the store of the rendezvous does not answer",
        ),
        ([], "who holds it up is not known: the store of the rendezvous does not answer"),
    ],
)
def test_who_holds_up_the_job(partners, said):
    assert describe(partners, now=100.0, silent_seconds=4.0) == said


def test_a_large_job_is_described_in_a_line_of_bounded_length():
    text = describe([seen(0), *(seen(rank, published_at=1.0) for rank in range(1, 1000))], 100.0, 4.0)
    assert len(text) < 1000 and text.endswith("; and 991 more")


def test_partners_see_who_moves_and_who_only_lives():
    store = dist.HashStore()
    mine, other = (Partners(store, rank, 2) for rank in range(2))
    heart = Heart("step 1", beats=5)
    mine.publish(heart), other.publish(heart)
    mine.look()
    first = mine.seen
    assert [one.phase for one in first.values()] == ["step 1", "step 1"]
    mine.publish(heart)
    heart.beats, heart.phase = 6, "step 2"
    other.publish(heart)
    time.sleep(0.01)
    mine.look()
    assert mine.seen[0].moved_at == first[0].moved_at and mine.seen[0].published_at > first[0].published_at
    assert mine.seen[1].moved_at > first[1].moved_at and mine.seen[1].phase == "step 2"
    third = mine.seen
    time.sleep(0.01)
    mine.look()
    assert mine.seen == third


def test_one_process_has_no_partners():
    assert Partners.of_this_job(0, 1) is None
