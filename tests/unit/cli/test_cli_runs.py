"""`loopcoder runs` and `loopcoder stop`: what folders, locks and SLURM's queue say, and who is asked to stop."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from launch.slurm import SCRIPT_FILE, job_name
from loopcoder_train.cli.run_state import WITHOUT_A_WORD
from loopcoder_train.config.io import write_run_config
from loopcoder_train.runtime.lock import RunLock, holder_of
from loopcoder_train.training.metrics import METRICS_FILE, MetricsWriter
from tests.unit.config.test_config_io import make_config

STEPS = make_config().training.num_steps

# A run that has the lock until it is asked to stop; then it does what its argument says.
HOLDER = """
import signal, sys, time
from pathlib import Path
from loopcoder_train.runtime.lock import RunLock
from loopcoder_train.training.metrics import MetricsWriter
run_dir, name, then = sys.argv[1:]
lock = RunLock(run_dir, name=name).acquire()
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
print("held", flush=True)
while not asked:
    time.sleep(0.01)
if then == "save":
    time.sleep(0.3)
    metrics = MetricsWriter(Path(run_dir, "metrics.jsonl"))
    metrics.event("stopped", 7, "SIGTERM to rank 0 at step 7")
    metrics.event("saved", 7, "saved")
elif then == "hang":
    time.sleep(60)
"""


def make_run(name: str, *, step: int = 0, ended: str | None = None, saved: bool = True) -> Path:
    run_dir = Path("runs") / name
    run_dir.mkdir(parents=True)
    write_run_config(make_config(run_dir=str(run_dir)), run_dir / "run.yaml")
    if step:
        with MetricsWriter(run_dir / METRICS_FILE) as metrics:
            metrics.event("started", 0, "started")
            for number in range(1, step + 1):
                numbers = {"loss": 5 - number / 10, "tokens_per_second": 1234.5, "effective_training_share": 0.914}
                metrics.write("train", number, numbers)
            metrics.write("evaluation", step, {"loss": 9.9})
            if ended:
                metrics.event("stopped", step, ended)
            if ended and saved:
                metrics.event("saved", step, "saved")
    return run_dir


def record_error(run_dir: Path, attempt: str, rank: int, message: str, *, time: float, user_error: bool = False):
    folder = run_dir / "logs" / attempt
    folder.mkdir(parents=True, exist_ok=True)
    details = {"time": time, "user_error": user_error}
    content = {"message": {"message": message, "extraInfo": details}}
    (folder / f"rank-{rank}.error.json").write_text(json.dumps(content))


@pytest.fixture
def hold():
    """`pid = hold(run_dir, name, then)`: another process that has the run."""
    processes = []

    def start(run_dir, name="run", then="save"):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(run_dir), name, then], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout.readline() == "held\n"
        processes.append(process)
        return process.pid

    yield start
    for process in processes:
        process.kill()
        process.wait()


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A stand-in for SLURM's commands: `slurm.queue` is what squeue prints, `slurm.calls()` what else was called."""

    class Slurm:
        folder = tmp_path / "slurm"

        def queue(self, *jobs: str) -> None:
            (self.folder / "queue").write_text("".join(f"{job}\n" for job in jobs))

        def calls(self) -> list[str]:
            file = self.folder / "calls"
            return file.read_text().splitlines() if file.exists() else []

    here = Slurm()
    here.folder.mkdir()
    here.queue()
    folder = shlex.quote(str(here.folder))
    scancel = f'echo "$*" >> {folder}/calls; : > {folder}/queue'
    for name, does in (("squeue", f"cat {folder}/queue"), ("scancel", scancel)):
        (here.folder / name).write_text(f"#!/bin/sh\n{does}\n")
        (here.folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{here.folder}:{os.environ['PATH']}")
    return here


@pytest.fixture
def broken_slurm(slurm):
    """SLURM's commands are there and fail."""
    (slurm.folder / "squeue").write_text("#!/bin/sh\necho 'slurm_load_jobs error: no contact' >&2; exit 1\n")


def submitted(run_dir: Path) -> Path:
    """`run_dir`, of which a job has been submitted."""
    (run_dir / SCRIPT_FILE).touch()
    return run_dir


def listed(loopcoder, *arguments) -> dict[str, dict]:
    code, out, error = loopcoder("runs", *arguments, "json=true")
    assert (code, error) == (0, ""), error
    return {Path(line["run_dir"]).name: line for line in map(json.loads, out.splitlines())}


def test_every_state_from_files_only(workplace, loopcoder, hold, broken_slurm):
    make_run("a-new")
    make_run("b-finished", step=STEPS, ended=f"finished at step {STEPS}")
    make_run("c-stopped", step=4, ended="SIGTERM to rank 1 at step 4")
    make_run("d-killed", step=3)
    pid = hold(make_run("e-running", step=5))
    starting = hold(make_run("f-starting"), "launcher")
    failed = make_run("g-failed", step=2)
    record_error(failed, "attempt-1", 0, "of an attempt that is over", time=1.0)
    os.utime(failed / "logs/attempt-1", (1, 1))
    record_error(failed, "attempt-2", 0, "lost rank 1", time=11.0)
    record_error(failed, "attempt-2", 1, "RuntimeError: broken", time=10.0)
    (failed / "logs/attempt-2/rank-2.error.json").write_text("{")
    (make_run("h-unreadable") / "run.yaml").write_text("seed: {")
    runs = listed(loopcoder)
    assert list(runs) == sorted(runs) and len(runs) == 8
    states = {name: (run["state"], run["step"], run["where"]) for name, run in runs.items()}
    here = socket.gethostname()
    assert states == {
        "a-new": ("new", 0, ""), "b-finished": ("finished", STEPS, ""), "c-stopped": ("stopped", 4, ""),
        "d-killed": ("failed", 3, ""), "e-running": ("running", 5, f"{here}:{pid}"),
        "f-starting": ("running", 0, f"{here}:{starting}"), "g-failed": ("failed", 2, ""),
        "h-unreadable": ("unreadable", 0, ""),
    }  # fmt: skip
    assert runs["c-stopped"]["reason"] == "SIGTERM to rank 1 at step 4"
    assert runs["d-killed"]["reason"] == WITHOUT_A_WORD
    assert runs["g-failed"]["reason"] == "RuntimeError: broken"
    assert "run.yaml: is not YAML" in runs["h-unreadable"]["reason"]
    assert runs["e-running"]["loss"] == 4.5 and runs["e-running"]["tokens_per_second"] == 1234.5
    assert runs["e-running"]["num_steps"] == STEPS


def test_a_users_error_explains_the_run(workplace, loopcoder, broken_slurm):
    run_dir = make_run("a", step=2)
    record_error(run_dir, "attempt-1", 0, "lost rank 1", time=10.0)
    record_error(run_dir, "attempt-1", 1, "data.corpus_dir=x: is damaged", time=11.0, user_error=True)
    assert listed(loopcoder)["a"]["reason"] == "data.corpus_dir=x: is damaged"


def test_killed_while_it_saved_is_not_stopped(workplace, loopcoder, broken_slurm):
    make_run("a", step=5, ended="SIGTERM to rank 1 at step 5", saved=False)
    run = listed(loopcoder)["a"]
    assert (run["state"], run["step"]) == ("failed", 5)
    assert run["reason"] == "killed while it saved; the last good checkpoint is that of step 0"


def test_the_table(workplace, loopcoder, broken_slurm):
    make_run("quick", step=4, ended="SIGTERM to rank 1 at step 4")
    make_run("sweep/model.num_loops=2")
    (Path("runs/quick/checkpoints/step-4")).mkdir(parents=True)
    (Path("runs/quick/checkpoints/step-4/run.yaml")).write_text("not a run: it lies inside of one")
    for arguments in ([], ["runs"], ["folder=runs"]):
        code, out, error = loopcoder("runs", *arguments)
        assert (code, error) == (0, "")
        assert [line.split() for line in out.splitlines()] == [
            ["run", "state", "step", "loss", "tokens/s", "effective", "where,", "why"],
            [
                "runs/quick",
                "stopped",
                f"4/{STEPS}",
                "4.6000",
                "1.23k",
                "91%",
                *["SIGTERM", "to", "rank", "1", "at", "step", "4"],
            ],
            ["runs/sweep/model.num_loops=2", "new", f"0/{STEPS}"],
        ]
    assert loopcoder("runs", "runs/quick")[1].count("\n") == 2
    Path("empty").mkdir()
    assert loopcoder("runs", "empty") == (0, "empty: no runs\n", "")
    code, _, error = loopcoder("runs", "nowhere")
    assert code == 2 and error.count("\n") == 1 and "nowhere: no such folder" in error


def test_flag_json_is_the_option(workplace, loopcoder, broken_slurm):
    make_run("a")
    assert loopcoder("runs", "--json") == loopcoder("runs", "json=true")


def test_jobs_of_slurm(workplace, loopcoder, slurm, hold):
    made = make_run("queued"), make_run("running", step=3), make_run("requeued", step=4, ended="x")
    queued, running, requeued = map(submitted, made)
    make_run("other")
    slurm.queue(
        f"11|{job_name(queued)}|PENDING|Resources|",
        f"12|{job_name(running)}|RUNNING|None|n[1-2]",
        f"13|{job_name(requeued)}|PENDING|BeginTime|",
        "14|somebody else's|RUNNING|None|n3",
        f"15|{job_name(running)}|PENDING|Dependency|",
    )
    runs = listed(loopcoder)
    assert {name: (run["state"], run["where"], run["reason"]) for name, run in runs.items()} == {
        "queued": ("queued", "job 11", "Resources"), "running": ("running", "job 12 on n[1-2]", ""),
        "requeued": ("queued", "job 13", "BeginTime"), "other": ("new", "", ""),
    }  # fmt: skip


def test_a_silent_slurm_is_said_and_not_taken_for_an_empty_queue(workplace, loopcoder, broken_slurm):
    submitted(make_run("a"))
    code, out, error = loopcoder("runs")
    assert (code, out) == (2, "") and "squeue: slurm_load_jobs error: no contact" in error


def test_stop_asks_the_run_waits_and_says_what_became_of_it(workplace, loopcoder, hold, broken_slurm):
    run_dir = make_run("a", step=7)
    pid = hold(run_dir)
    code, out, error = loopcoder("stop", str(run_dir))
    assert (code, error) == (0, "")
    said = f"runs/a: asked process {pid}; stopped (SIGTERM to rank 0 at step 7), step 7 of {STEPS}\n"
    assert out == said
    assert holder_of(run_dir) is None
    assert loopcoder("stop", str(run_dir)) == (0, f"runs/a: is not running; stopped, step 7 of {STEPS}\n", "")


def test_stop_finds_a_run_that_is_starting(workplace, loopcoder, hold, broken_slurm):
    run_dir = make_run("a")
    pid = hold(run_dir, "launcher")
    assert f"asked process {pid}" in loopcoder("stop", str(run_dir))[1]


def test_stop_does_not_wait_forever_and_tells_failures(workplace, loopcoder, hold, broken_slurm):
    hanging, dying = make_run("a", step=7), make_run("b", step=2)
    pid = hold(hanging, then="hang")
    code, out, _ = loopcoder("stop", str(hanging), "wait_seconds=0.5")
    assert code == 1 and f"asked process {pid}; still running after 0 s, at step 7" in out
    hold(dying, then="die")
    code, out, _ = loopcoder("stop", str(dying), "json=true")
    assert code == 1 and json.loads(out)["state"] == "failed"


def test_a_run_on_another_machine_is_not_signalled_here(workplace, loopcoder, broken_slurm):
    run_dir = make_run("a", step=1)
    with RunLock(run_dir) as lock:
        lock.path.write_text(json.dumps({"host": "elsewhere", "pid": os.getpid(), "since": "now"}))
        before = signal.getsignal(signal.SIGTERM)
        code, _, error = loopcoder("stop", str(run_dir))
    assert code == 2 and f"process {os.getpid()} on elsewhere" in error and error.count("\n") == 1
    assert signal.getsignal(signal.SIGTERM) is before


def test_stop_of_jobs(workplace, loopcoder, slurm, hold):
    """SIGINT, after which a job is not requeued; one that has not begun is taken out of the queue."""
    waiting, starting = submitted(make_run("waiting")), submitted(make_run("starting"))
    for number, run_dir, state in ((21, waiting, "PENDING|Resources|"), (22, starting, "RUNNING|None|n1")):
        slurm.queue(f"{number}|{job_name(run_dir)}|{state}")
        code, out, error = loopcoder("stop", str(run_dir))
        assert (code, error) == (0, "") and f"cancelled job {number}, which had not begun; new" in out
        assert slurm.calls()[-1] == str(number)
    running = submitted(make_run("running", step=2, ended="SIGINT to rank 0"))
    with RunLock(running):
        slurm.queue(f"23|{job_name(running)}|RUNNING|None|n1")
        code, out, _ = loopcoder("stop", str(running), "wait_seconds=0")
    assert code == 1 and "asked job 23; still running" in out and slurm.calls()[-1] == "--signal=INT 23"


def test_stop_of_nothing(workplace, loopcoder, broken_slurm):
    code, _, error = loopcoder("stop", "runs/none")
    assert code == 2 and "run_dir=runs/none: holds no run; `loopcoder runs`" in error
    assert "run_dir" in loopcoder("stop")[2]
