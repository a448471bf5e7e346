"""The launcher with real processes: exit codes, one line per failure, logs, restarts, signals, orphans, terminals."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch import local
from launch.local import run_workers
from loopcoder_train.config.process import process_began

pytestmark = pytest.mark.distributed
FAKE = "tests.unit.launch.fake_worker"
ROOT = Path(__file__).parents[3]


@pytest.fixture
def launch(tmp_path, monkeypatch, capfd):
    """`code, stdout, stderr = launch({rank: behaviour}, nproc=2, max_restarts=0)`."""
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def run(behaviour, nproc=2, max_restarts=0, **options):
        capfd.readouterr()
        code = run_workers(
            config_file(tmp_path, behaviour), nproc, max_restarts, tmp_path / "logs", **{"module": FAKE, **options}
        )
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return run


def config_file(folder, behaviour):
    for file in folder.glob("pid-*"):
        file.unlink()
    file = folder / "run.yaml"
    file.write_text(json.dumps({str(rank): what for rank, what in behaviour.items()}))
    return file


def test_success_shows_rank_0_and_keeps_the_rest_in_files(launch, tmp_path):
    before = dict(os.environ), {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    threads = max(1, len(os.sched_getaffinity(0)) // 2)
    assert launch({}) == (0, f"rank 0 tty=False threads={threads}\n", "")
    assert (tmp_path / "logs/attempt-1/rank-1.stdout").read_text() == f"rank 1 tty=False threads={threads}\n"
    # Nothing of it stays in this process, and a second start is a second attempt.
    assert (dict(os.environ), {number: signal.getsignal(number) for number in before[1]}) == before
    assert launch({}, nproc=1, threads_per_worker=3) == (0, "rank 0 tty=False threads=3\n", "")
    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == ["attempt-1", "attempt-2"]


def test_threads_set_by_the_user_stay(launch, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert "threads=7" in launch({}, nproc=1)[1]


def test_user_error_is_one_line_code_2_and_never_restarted(launch, tmp_path):
    code, _, error = launch({1: "user error", 0: "wait"}, max_restarts=3)
    assert (code, error) == (2, "loopcoder: error: corpus of rank 1 is damaged\n")
    assert [path.name for path in (tmp_path / "logs").iterdir()] == ["attempt-1"]


def test_same_user_error_on_all_ranks_is_shown_once(launch):
    code, _, error = launch({0: "user error", 1: "user error"})
    assert code == 2 and error.count("\n") == 1 and "is damaged" in error


def test_user_error_explains_the_partner_that_failed_first(launch):
    for failing in ("user error", "user error, slow to close"):
        code, _, error = launch({0: "lose partner", 1: failing})
        assert (code, error) == (2, "loopcoder: error: corpus of rank 1 is damaged\n")


def test_exit_code_2_without_a_message_is_a_failure(launch):
    code, _, error = launch({0: "exit 2"}, nproc=1)
    assert code == 1 and "rank 0 failed with exit code 2" in error


def test_killed_rank_is_named_with_its_signal_and_log(launch, tmp_path):
    for partner in ("wait", "lose partner"):
        code, _, error = launch({0: partner, 1: "die"})
        assert code == 1 and error.count("\n") == 1
        assert "rank 1 was killed by SIGKILL" in error and str(tmp_path / "logs/attempt-") in error


def test_a_failure_tells_how_far_its_attempt_came(launch):
    began = []

    def progress(since):
        began.append(since)
        return f"after step {len(began)} of 40"

    before = time.time()
    code, _, error = launch({0: "raise"}, nproc=1, max_restarts=1, progress=progress)
    first, second = error.splitlines()
    assert code == 1 and "(RuntimeError: rank 0 is broken), after step 1 of 40; log: " in first
    assert ", after step 2 of 40; log: " in second and before < began[0] < began[1] < time.time()
    _, _, error = launch({0: "user error"}, nproc=1, progress=progress)
    assert error == "loopcoder: error: corpus of rank 0 is damaged\n"


def test_exception_is_one_line_and_its_traceback_is_in_the_log(launch, tmp_path):
    code, _, error = launch({0: "wait", 1: "raise"})
    log = tmp_path / "logs/attempt-1/rank-1.stderr"
    assert (code, error) == (
        1,
        f"loopcoder: error: rank 1 failed with exit code 1 (RuntimeError: rank 1 is broken); log: {log}\n",
    )
    assert "Traceback" in log.read_text()


def test_failure_is_restarted_as_often_as_asked(launch, tmp_path):
    code, _, error = launch({0: "raise"}, nproc=1, max_restarts=2)
    lines = error.splitlines()
    assert code == 1 and len(lines) == 3
    assert [line.partition("; restart ")[2] for line in lines] == ["1 of 2", "2 of 2", ""]
    assert len(list((tmp_path / "logs").iterdir())) == 3


def test_real_worker_carries_its_user_error_through(launch, tmp_path):
    code, _, error = launch({0: 1}, module="loopcoder_train.worker")
    assert code == 2 and error.startswith(f"loopcoder: error: {tmp_path}/run.yaml: ") and error.count("\n") == 1


def test_workers_know_when_their_launcher_began_with_them(launch, tmp_path, monkeypatch):
    monkeypatch.setattr(local, "_idle_since", None)
    before = time.monotonic()
    launch({0: "raise"}, nproc=1, max_restarts=1)
    first, second = map(float, (tmp_path / "began-0").read_text().split())
    assert first == pytest.approx(process_began(), abs=0.05), "all that the launcher did before is part of the start"
    assert before < second < time.monotonic(), "a restart begins where the attempt before it ended"


def start_launcher(folder, behaviour, **options):
    program = (
        "import sys; from pathlib import Path; from launch.local import run_workers; "
        f"sys.exit(run_workers(Path(sys.argv[1]), 2, 0, Path(sys.argv[2]), module={FAKE!r}))"
    )
    command = [sys.executable, "-c", program, str(config_file(folder, behaviour)), str(folder / "logs")]
    return subprocess.Popen(command, cwd=ROOT, **options)


def wait_for_workers(folder, seconds=60):
    deadline = time.monotonic() + seconds
    files = [folder / "pid-0", folder / "pid-1"]
    while not all(file.exists() and file.read_text() for file in files):
        assert time.monotonic() < deadline, "workers did not start"
        time.sleep(0.05)
    return [int(file.read_text()) for file in files]


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_gone(pids, seconds):
    deadline = time.monotonic() + seconds
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < deadline, f"still running after {seconds} s"
        time.sleep(0.05)


def test_killed_launcher_leaves_no_orphans(tmp_path):
    launcher = start_launcher(tmp_path, {0: "wait", 1: "wait"})
    pids = wait_for_workers(tmp_path)
    assert all(is_running(pid) for pid in pids)
    launcher.kill()
    launcher.wait()
    wait_until_gone(pids, 5)
    assert f"the launcher (process {launcher.pid}) is gone" in (tmp_path / "logs/attempt-1/rank-1.stderr").read_text()


STOPS = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGUSR2, 75)]


def start_listening_launcher(folder, behaviour):
    """A shell's `&` ignores SIGINT, nohup SIGHUP, and both stay so: this launcher was started by neither."""

    def listen():
        for number, _ in STOPS:
            signal.signal(number, signal.SIG_DFL)

    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    launcher = start_launcher(folder, behaviour, preexec_fn=listen, **pipes)
    return launcher, wait_for_workers(folder)


@pytest.mark.parametrize(("number", "code"), STOPS)
def test_signal_to_the_launcher_asks_the_workers_and_waits_for_them(tmp_path, number, code):
    launcher, pids = start_listening_launcher(tmp_path, {0: "wait", 1: "wait"})
    launcher.send_signal(number)
    out, error = launcher.communicate(timeout=20)
    assert launcher.returncode == code
    first, last = error.splitlines()
    assert first == f"loopcoder: {number.name}: the run saves and stops; once more ends it at once"
    assert last.startswith("loopcoder: time was up" if code == 75 else f"loopcoder: stopped by {number.name}")
    cause = {129: "hangup", 130: "interrupt", 143: "term", 75: "usr2"}[code]
    assert f"rank 0 saved for {cause}" in out, "the worker was ended by another signal than the launcher's"
    assert f"rank 1 saved for {cause}" in (tmp_path / "logs/attempt-1/rank-1.stdout").read_text()
    assert not any(is_running(pid) for pid in pids)


def test_second_signal_ends_workers_that_do_not_answer(tmp_path):
    launcher, pids = start_listening_launcher(tmp_path, {0: "hang", 1: "hang"})
    launcher.send_signal(signal.SIGINT)
    assert launcher.stderr.readline().startswith("loopcoder: SIGINT: the run saves")
    time.sleep(0.5)
    assert launcher.poll() is None and all(is_running(pid) for pid in pids), "the first one must wait for the save"
    launcher.send_signal(signal.SIGINT)
    assert launcher.wait(5) == 130
    assert launcher.stderr.read() == "loopcoder: stopped by SIGINT\n"
    wait_until_gone(pids, 1)


def test_the_announced_end_may_begin_while_the_workers_save(tmp_path):
    """SLURM sends SIGUSR2 ahead of the limit and SIGTERM at the limit; the second must not cost the save."""
    launcher, _ = start_listening_launcher(tmp_path, {0: "wait", 1: "wait"})
    launcher.send_signal(signal.SIGUSR2)
    launcher.stderr.readline()
    launcher.send_signal(signal.SIGTERM)
    out, _ = launcher.communicate(timeout=20)
    assert launcher.returncode == 75 and "rank 0 saved for usr2" in out


def test_signal_to_one_worker_ends_the_run_with_its_code(tmp_path):
    """Between real workers the request is agreed on; these take one each."""
    launcher, pids = start_listening_launcher(tmp_path, {0: "wait", 1: "wait"})
    for pid in pids:
        os.kill(pid, signal.SIGTERM)
    _, error = launcher.communicate(timeout=20)
    assert (launcher.returncode, error) == (143, "loopcoder: stopped by SIGTERM\n")


def test_a_worker_that_fails_while_it_stops_is_a_failure_and_not_restarted(tmp_path):
    launcher, pids = start_listening_launcher(tmp_path, {0: "wait", 1: "hang"})
    launcher.send_signal(signal.SIGTERM)
    launcher.stderr.readline()
    os.kill(pids[1], signal.SIGKILL)
    _, error = launcher.communicate(timeout=20)
    assert launcher.returncode == 1 and "rank 1 was killed by SIGKILL" in error


def test_running_out_of_time_is_neither_a_failure_nor_restarted(launch, tmp_path):
    code, _, error = launch({0: "run out of time", 1: "run out of time"}, max_restarts=3)
    assert code == 75 and error.startswith("loopcoder: time was up; the run saved and stopped")
    assert [path.name for path in (tmp_path / "logs").iterdir()] == ["attempt-1"]


def test_the_end_of_a_failed_partner_is_not_taken_for_a_request(launch, tmp_path):
    """torchrun's agent sends SIGTERM to the partners of a failed worker; they have nothing to save."""
    started = time.monotonic()
    code, _, _ = launch({0: "wait", 1: "raise"})
    assert code == 1 and time.monotonic() - started < 20
    assert "SIGTERM" not in (tmp_path / "logs/attempt-1/rank-0.stderr").read_text()


def test_nohup_is_respected(tmp_path):
    ignore = lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)  # noqa: E731 - as nohup does
    launcher = start_launcher(tmp_path, {0: "wait", 1: "wait"}, preexec_fn=ignore, stderr=subprocess.DEVNULL)
    pids = wait_for_workers(tmp_path)
    launcher.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert launcher.poll() is None and all(is_running(pid) for pid in pids)
    launcher.terminate()
    assert launcher.wait(20) == 143


def test_rank_0_has_the_terminal_of_the_launcher(tmp_path):
    outer, inner = pty.openpty()
    launcher = start_launcher(tmp_path, {}, stdout=inner)
    os.close(inner)
    assert launcher.wait(60) == 0
    assert os.read(outer, 100).startswith(b"rank 0 tty=True")
    os.close(outer)


def test_torchrun_by_hand(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("sede: 1\n")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m",
               "loopcoder_train.worker", "--config", str(file)]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert result.returncode != 0
    assert f"error: {file}: sede: unknown option; did you mean seed?\n" in result.stderr
    assert "Traceback" not in result.stderr.partition("ChildFailedError")[0].partition("torch/distributed")[0]
