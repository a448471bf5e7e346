"""A sweep on a real SLURM, killed, given again and robbed of a stage, has the numbers of the same sweep without it."""

import json
import subprocess
from pathlib import Path

import pytest

from launch.slurm import job_name
from tests.integration.conftest import command, loopcoder
from tests.integration.running import newest_step
from tests.slurm.cluster import wait_until
from tests.slurm.conftest import ON_TWO_NODES, Jobs, tell

pytestmark = [pytest.mark.slurm, pytest.mark.distributed, pytest.mark.faults, pytest.mark.timeout(1800)]
ARMS = ("num_loops=1", "num_loops=2")


@pytest.fixture(scope="module")
def arguments(corpus) -> list[str]:
    """The miniature of the study: two arms, every stage."""
    return [
        "sweep", "experiment=miniature", "sweep=miniature", f"data.corpus_dir={corpus}", "model.vocab_size=512",
        "data.max_repeats=1000", "training.num_steps=8", "training.num_threads=1", "evaluation.every_steps=1",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def here(arguments, tmp_path_factory) -> Path:
    """The sweep on this machine, without SLURM."""
    folder = tmp_path_factory.mktemp("here") / "sweep"
    outcome = loopcoder(*arguments, f"run_dir={folder}", timeout=1200)
    assert outcome.code == 0, outcome.stderr
    return folder


class Sweep:
    """The sweep on the cluster."""

    def __init__(self, cluster, corpus: Path, arguments: list[str], folder: Path) -> None:
        self.jobs, self.folder = Jobs(cluster, corpus), folder
        self._arguments = [*arguments, *ON_TWO_NODES, f"run_dir={folder}"]

    def start(self) -> subprocess.Popen:
        """The command; it waits for its jobs."""
        return subprocess.Popen(
            command(*self._arguments), env=self.jobs.cluster.environment, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def again(self) -> str:
        """The command to its good end; what it said."""
        process = self.start()
        stderr = process.communicate(timeout=1200)[1]
        assert process.returncode == 0, stderr + self.logs()
        return stderr

    def run_of(self, arm: str) -> Path:
        """The folder of an arm's pretraining."""
        return self.folder / arm / "pretrain"

    def running(self, run_dir: Path) -> list[str]:
        """Jobs by srun that read this run."""
        return self.jobs.cluster.run(
            "squeue", "--noheader", f"--name={job_name(run_dir)}-read", "--states=RUNNING", "--format=%i"
        ).split()

    def logs(self) -> str:
        """The ends of what stages wrote."""
        runs = [path.parent for path in self.folder.rglob("run.yaml")]
        stages = [path.read_text(errors="replace")[-2000:] for path in sorted(self.folder.rglob("stages/*.log"))]
        return "\n".join(map(tell, runs)) + "\n".join(stages)


@pytest.fixture(scope="module")
def there(cluster, corpus, arguments, tmp_path_factory):
    """Killed while both arms are trained, and given again."""
    sweep = Sweep(cluster, corpus, arguments, tmp_path_factory.mktemp("there") / "sweep")
    first = sweep.start()
    wait_until(lambda: newest_step(sweep.run_of(ARMS[0])) >= 2, 300, "the first arm is trained", required=False)
    assert first.poll() is None and newest_step(sweep.run_of(ARMS[0])) >= 2, sweep.logs()
    first.kill()
    first.communicate()
    sweep.again()
    yield sweep
    cluster.cancel_all()


def numbers(folder: Path) -> tuple[list[dict], dict]:
    """Of every arm, and of the verdict, without clocks."""
    content = json.loads((folder / "report.json").read_text().replace(str(folder), "SWEEP"))
    for values in (*content["arms"], *content["verdict"]["values"]):
        del values["training_seconds"]
    return content["arms"], content["verdict"]


def test_killed_and_given_again_it_has_the_numbers_of_the_sweep_without_slurm(here, there):
    assert numbers(there.folder) == numbers(here)
    for arm in ARMS:
        for name in ("pretrain", "finetune"):
            logs = list((there.folder / arm / name / "logs").glob("job-*.log"))
            assert len(logs) == 1, f"{arm}: {name} was submitted more than once"


def test_a_stage_that_slurm_cancels_costs_its_arm_only(here, there):
    """What a stage's time limit or a `scancel` does: srun ends with the code of a signal, which nobody sent to us."""
    for arm in ARMS:
        (there.folder / arm / "stages" / "diagnose.json").unlink()
        (there.run_of(arm) / "diagnostics.json").unlink()
    (there.folder / "report.json").unlink()
    process = there.start()
    wait_until(lambda: there.running(there.run_of(ARMS[0])), 200, "the first arm is diagnosed")
    there.jobs.cluster.run("scancel", *there.running(there.run_of(ARMS[0])))
    stderr = process.communicate(timeout=300)[1]
    assert process.returncode == 1 and "num_loops=1: diagnose failed with exit code" in stderr, stderr
    arms, _ = numbers(there.folder)
    assert [arm["diagnosis"] is None for arm in arms] == [True, False]
    there.again()
    assert numbers(there.folder) == numbers(here)


def test_a_stage_that_a_killed_sweep_left_behind_is_waited_for(here, there):
    run_dir = there.run_of(ARMS[1])
    (there.folder / ARMS[1] / "stages" / "diagnose.json").unlink()
    killed = there.start()
    wait_until(lambda: there.running(run_dir), 200, "the second arm is diagnosed")
    killed.kill()
    killed.communicate()
    left = there.running(run_dir)
    assert left, "srun outlives the sweep"
    process, seen = there.start(), set()

    def look() -> bool:
        now = there.running(run_dir)
        assert len(now) <= 1, "two write into one run"
        seen.update(now)
        return process.poll() is not None

    wait_until(look, 300, "the sweep ends")
    assert process.communicate() and process.returncode == 0 and len(seen) == 2, (seen, left)
    assert numbers(there.folder) == numbers(here)
