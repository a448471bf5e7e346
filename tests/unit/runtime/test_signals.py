"""Requests reach a worker whatever its main thread does; the second ends it; the launcher's SIGTERM is the end."""

import signal
import subprocess
import sys
import textwrap
import time

import pytest

from loopcoder_train.config.process import STOP_SIGNALS, is_second, original_of, passed_on, signal_exit_code

# A worker whose main thread sits in native code and never comes back to the interpreter, like one in a collective.
STUCK = """
    import ctypes, os, subprocess, sys, threading, time
    from loopcoder_train.runtime.signals import StopRequests
    launcher = os.getppid() if "launched" in sys.argv else None
    requests = StopRequests(name="rank 3", launcher_pid=launcher)
    requests.listen()
    def tell():
        while requests.cause is None:
            time.sleep(0.001)
        print(requests.cause.name, requests.cause.exit_code, flush=True)
        if "finish" in sys.argv:
            requests.finish()
            print("finished", flush=True)
    threading.Thread(target=tell, daemon=True).start()
    if "fork" in sys.argv:
        if (child := os.fork()) == 0:
            os.kill(os.getpid(), 15)
            time.sleep(1)
            os._exit(0)
        print("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    print("ready", flush=True)
    ctypes.CDLL(None).sleep(60)
"""


@pytest.fixture
def worker():
    processes = []

    def start(*words, ignored=()):
        def prepare():
            for number in STOP_SIGNALS:
                signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)

        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(STUCK), *words],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=prepare,
        )  # fmt: skip
        processes.append(process)
        lines = [process.stdout.readline()]
        while lines[-1] not in ("ready\n", ""):
            lines.append(process.stdout.readline())
        process.before = lines
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (signal.SIGTERM, "term 143"),
        (signal.SIGINT, "interrupt 130"),
        (signal.SIGHUP, "hangup 129"),
        (signal.SIGUSR2, "usr2 75"),
    ],
)
def test_a_signal_is_a_request_even_in_a_collective(worker, number, said):
    for sent in (number, passed_on(number)):
        process = worker()
        process.send_signal(sent)
        assert process.stdout.readline() == f"{said}\n" and process.poll() is None
        assert process.stderr.readline() == (
            f"rank 3 (process {process.pid}): {number.name}: will save and stop at the end of this step\n"
        )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2])
def test_the_second_ends_it_at_once(worker, number):
    process = worker()
    process.send_signal(number)
    process.stdout.readline()
    process.send_signal(number)
    assert process.wait(5) == 128 + number
    assert "a second request; stopping at once, without saving" in process.stderr.read()


def test_what_slurm_sends_to_everybody_and_the_launcher_passes_on_is_one_request(worker):
    process = worker("launched")
    process.send_signal(passed_on(signal.SIGUSR2))
    process.stdout.readline()
    subprocess.run(["kill", "-USR2", str(process.pid)], check=True)
    subprocess.run(["kill", "-TERM", str(process.pid)], check=True)  # announced before, now begun
    time.sleep(0.3)
    assert process.poll() is None
    subprocess.run(["kill", "-TERM", str(process.pid)], check=True)
    assert process.wait(5) == 143


def test_sigterm_of_our_launcher_is_the_end(worker):
    process = worker("launched")
    process.send_signal(signal.SIGTERM)  # this process is its parent
    assert process.wait(5) == -signal.SIGTERM and process.stdout.read() == ""
    process = worker("launched")
    subprocess.run(["kill", "-TERM", str(process.pid)], check=True)  # somebody else is not
    assert process.stdout.readline() == "term 143\n"


def test_ignored_hangup_and_interrupt_stay_ignored(worker):
    """nohup, and a shell's `&`; SIGTERM and SIGUSR2 are for us whatever was ignored before."""
    process = worker(ignored=STOP_SIGNALS)
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    process.send_signal(signal.SIGUSR2)
    assert process.stdout.readline() == "usr2 75\n"


def test_once_everything_is_saved_signals_change_nothing(worker):
    process = worker("finish")
    process.send_signal(signal.SIGTERM)
    assert [process.stdout.readline() for _ in range(2)] == ["term 143\n", "finished\n"]
    for _ in range(3):
        process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert process.poll() is None


def test_a_forked_child_is_not_deaf(worker):
    process = worker("fork")
    assert process.before == [f"child {-signal.SIGTERM}\n", "ready\n"]


def test_codes_and_passed_on_signals():
    assert [signal_exit_code(number) for number in STOP_SIGNALS] == [143, 130, 129, 75]
    for number in STOP_SIGNALS:
        assert original_of(passed_on(number)) == number and original_of(number) is None
        assert signal.SIGRTMIN < passed_on(number) <= signal.SIGRTMAX
        assert not is_second(None, number) and is_second(number, number)
    assert not is_second(signal.SIGUSR2, signal.SIGTERM) and is_second(signal.SIGTERM, signal.SIGUSR2)
