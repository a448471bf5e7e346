import subprocess
import sys
import time

import pytest

from loopcoder_train.config.process import LAUNCHER_BEGAN, process_began
from loopcoder_train.runtime import heartbeat, start_clock
from loopcoder_train.runtime.heartbeat import Heart, enter
from loopcoder_train.runtime.start_clock import StartClock


@pytest.fixture
def now(monkeypatch):
    """The time, set by the test; this process began at 100."""
    now = [100.0]
    monkeypatch.setattr(start_clock.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(start_clock, "process_began", lambda: 100.0)
    return now


def test_phases_of_the_heartbeat_are_counted_without_gaps(now, monkeypatch):
    clock = StartClock.of_this_process({LAUNCHER_BEGAN: "97.5"})
    monkeypatch.setattr(heartbeat, "HEART", Heart(clock=clock))
    for at, phase, part in [
        (103.0, "the rendezvous", "rendezvous"),
        (104.0, "a barrier", None),  # the watchdog's matter only
        (110.0, "saving at the start", "hooks"),
        (111.0, "step 5, waiting for data", "first_batch"),
        (111.5, "step 5, forward", "first_step"),
        (113.5, "step 6, waiting for data", "first_batch"),  # comes again: adds up
    ]:
        now[0] = at
        enter(phase, part=part)
    now[0] = 114.0
    parts = clock.stop()
    assert parts == {
        "start": 2.5, "imports": 3.0, "rendezvous": 7.0, "hooks": 1.0, "first_batch": 1.0, "first_step": 2.0,
    }  # fmt: skip
    assert list(parts) == [part for part in start_clock.PARTS if part in parts]
    assert clock.began == 97.5 and sum(parts.values()) == 114.0 - 97.5
    now[0] = 200.0
    enter("step 7, waiting for data", part="first_batch")
    assert clock.stop() == parts, "what comes after the start is not counted"


def test_without_our_launcher_the_process_is_the_beginning(now):
    clock = StartClock.of_this_process({})
    now[0] = 101.0
    assert clock.stop() == {"imports": 1.0} and not clock.knows_launcher


def test_a_part_that_nobody_knows_is_an_error():
    with pytest.raises(KeyError, match="coffee"):
        StartClock("device").enter("coffee")


def test_the_beginning_of_a_process_is_on_this_machines_clock():
    program = "import time; time.sleep(0.3); from loopcoder_train.config.process import process_began as b; print(b())"
    before = time.monotonic()
    began = float(subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout)
    after = time.monotonic()
    assert before - 0.02 <= began < after - 0.3, "to a hundredth of a second"
    assert process_began() < before
