"""Runs of real processes in which something breaks on purpose, started as `loopcoder pretrain` starts them."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.conftest import ROOT, Outcome, environment, make_corpus, pretrain, rank_of, workers_of

LAUNCH = """
import sys
from pathlib import Path
from launch.local import run_workers
run_dir, world_size, max_restarts = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
sys.exit(run_workers(run_dir / "run.yaml", world_size, max_restarts, run_dir / "logs", module="tests.faults.worker"))
"""
TWO = "parallel.world_size=2"
# So that something can be met between two steps.
SLOWLY = ["evaluation.every_steps=1", "evaluation.batch_size=1", "evaluation.max_sequences_per_source=40"]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """One corpus for all."""
    return make_corpus(tmp_path_factory.mktemp("corpora") / "own")


@dataclass(slots=True)
class Job:
    """A running launcher and its workers."""

    run_dir: Path
    process: subprocess.Popen

    def wait(self, timeout: float = 240) -> Outcome:
        """The end of the launcher."""
        out, err = self.process.communicate(timeout=timeout)
        return Outcome(self.process.returncode, out, err)

    def wait_for(self, condition, seconds: float = 120) -> None:
        """Until `condition()`; fails when the job ends before."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def workers(self) -> list[int]:
        """Process ids in order of rank."""
        return sorted(workers_of(self.process.pid), key=rank_of)

    def kill_all(self) -> None:
        """SIGKILL the workers and the launcher, at once."""
        for pid in (*self.workers(), self.process.pid):
            os.kill(pid, signal.SIGKILL)
        self.process.communicate(timeout=60)


def start(run_dir: Path, corpus: Path, *options: str, fault: dict, world_size: int = 2, max_restarts: int = 0) -> Job:
    """Start the small run of tests/integration with `fault` in its workers."""
    written = pretrain(run_dir, corpus, f"parallel.world_size={world_size}", *options, "launch.start_workers=false")
    assert written.code == 0, written.stderr
    line = [sys.executable, "-c", LAUNCH, str(run_dir), str(world_size), str(max_restarts)]
    variables = environment() | {"FAULT": json.dumps(fault)}
    process = subprocess.Popen(line, cwd=ROOT, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return Job(run_dir, process)
