"""A run in the background, and signals to its processes at chosen moments."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from loopcoder_train.training.metrics import METRICS_FILE, newest_records, read_metrics
from tests.integration.conftest import Outcome, command, environment

STARTED_SECONDS = 200.0


def listening() -> None:
    """A test run from a shell's `&` would hand an ignored SIGINT down, and ignored it would stay."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


class Running:
    """`loopcoder <arguments>` in the background; `run_dir` is where it writes. Killed when the block ends."""

    def __init__(self, run_dir: Path, arguments: list[str]) -> None:
        self.run_dir = run_dir
        self.process = subprocess.Popen(
            command(*arguments), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            preexec_fn=listening,
        )  # fmt: skip

    def __enter__(self) -> "Running":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        """Look every millisecond until `condition` is true."""
        deadline = time.monotonic() + STARTED_SECONDS
        while not condition():
            assert self.process.poll() is None, (what, self.process.communicate())
            assert time.monotonic() < deadline, what
            time.sleep(0.001)

    def wait_for_step(self, step: int) -> None:
        """Wait until `step` was logged, which is before it is evaluated or saved."""
        self.wait_for(lambda: newest_step(self.run_dir) >= step, f"step {step}")

    def worker(self, rank: int) -> int:
        """The process id of a rank."""
        for child in psutil.Process(self.process.pid).children():
            if child.environ().get("RANK") == str(rank):
                return child.pid
        raise AssertionError(f"no rank {rank}")

    def signal_worker(self, rank: int, number: int) -> None:
        """Send a signal to one rank, not to the launcher."""
        os.kill(self.worker(rank), number)

    def end(self, timeout: float = 200) -> Outcome:
        """Wait for the end."""
        stdout, stderr = self.process.communicate(timeout=timeout)
        return Outcome(self.process.returncode, stdout, stderr)


def newest_step(run_dir: Path) -> int:
    """The last step in the metrics; 0 before there is one."""
    return next((int(r["step"]) for r in newest_records(run_dir / METRICS_FILE) if r["kind"] == "train"), 0)


def events(run_dir: Path, name: str) -> list[dict]:
    """The events of this name so far, in order."""
    path = run_dir / METRICS_FILE
    return [r for r in read_metrics(path, ["event"]) if r["event"] == name] if path.exists() else []
