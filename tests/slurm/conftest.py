"""One cluster for all tests, a run that was not disturbed, and jobs submitted by the `loopcoder` command itself."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.integration.conftest import Outcome, command, make_corpus, pretrain, pretrain_arguments
from tests.integration.running import events, newest_step
from tests.slurm.cluster import Cluster, missing_program, wait_until

# One thread, as in the local run: the number of threads changes the order of sums. The nodes are this machine, whose
# name need not resolve, so gloo is told its interface.
ON_TWO_NODES = [
    "launch=slurm",
    "launch.nodes=2",
    "parallel.world_size=2",
    "training.num_threads=1",
    "launch.environment={GLOO_SOCKET_IFNAME: lo, OMP_NUM_THREADS: '1'}",
]
# Long enough to be met by whatever happens between two steps.
SLOW = ["evaluation.every_steps=1", "evaluation.batch_size=1", "evaluation.max_sequences_per_source=40"]


@pytest.fixture(scope="session")
def cluster():
    missing = missing_program()
    if missing:
        pytest.skip(f"{missing} is not installed: apt-get install slurm-wlm munge")
    with Cluster(nodes=3) as running:
        yield running


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpora") / "own")


@pytest.fixture(scope="session")
def straight(tmp_path_factory, corpus) -> Path:
    """An undisturbed run of two processes on this machine, without SLURM."""
    run_dir = tmp_path_factory.mktemp("straight") / "run"
    outcome = pretrain(run_dir, corpus, "parallel.world_size=2", "training.num_threads=1", *SLOW)
    assert outcome.code == 0, outcome.stderr + outcome.stdout
    return run_dir


class Jobs:
    """Commands given on the cluster."""

    def __init__(self, cluster: Cluster, corpus: Path) -> None:
        self.cluster, self.corpus = cluster, corpus

    def loopcoder(self, *arguments: str) -> Outcome:
        """`loopcoder` on the login node."""
        result = subprocess.run(
            command(*arguments), env=self.cluster.environment, capture_output=True, text=True, timeout=240, check=False
        )
        return Outcome(result.returncode, result.stdout, result.stderr)

    def pretrain(self, run_dir: Path, *options: str) -> str:
        """Submit the small run; returns the job's id."""
        arguments = pretrain_arguments(run_dir, self.corpus, *ON_TWO_NODES, *SLOW, *options)
        outcome = self.loopcoder(*arguments)
        assert outcome.code == 0, outcome.stderr
        return re.search(r"submitted as job (\d+);", outcome.stdout)[1]

    def wait_for_step(self, run_dir: Path, step: int, seconds: float = 240) -> None:
        """Wait until the run has logged `step`."""
        wait_until(lambda: newest_step(run_dir) >= step, seconds, f"step {step} of {run_dir}: {tell(run_dir)}")

    def wait_for_event(self, run_dir: Path, name: str, count: int = 1, seconds: float = 240) -> None:
        """Wait until the run has told of `count` events of this name."""
        wait_until(lambda: len(events(run_dir, name)) >= count, seconds, f"{name} of {run_dir}: {tell(run_dir)}")

    def finish(self, job: str, run_dir: Path, seconds: float = 400) -> None:
        """Wait for the job's good end."""
        self.cluster.wait_for(job, "", seconds=seconds)
        details = self.cluster.details(job)
        assert (details["JobState"], details["ExitCode"]) == ("COMPLETED", "0:0"), tell(run_dir)


def tell(run_dir: Path) -> str:
    """What the job wrote, for a failing test."""
    return "\n".join(path.read_text(errors="replace")[-3000:] for path in sorted(run_dir.glob("logs/*.log")))


@pytest.fixture
def jobs(cluster, corpus):
    yield Jobs(cluster, corpus)
    cluster.cancel_all()
