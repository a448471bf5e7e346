"""Training is submitted once, found again and waited for; the rest goes through srun with the cluster's options."""

import signal
from pathlib import Path

import pytest

from launch.slurm import Job, job_name
from loopcoder_train.config import UserError
from loopcoder_train.config.launch import LaunchConfig, LaunchKind
from loopcoder_train.sweep import slurm as stages
from loopcoder_train.sweep.arms import Arm
from loopcoder_train.sweep.runner import Stopped, run_arms_together
from loopcoder_train.sweep.slurm import SlurmStages
from loopcoder_train.sweep.stages import Stage
from tests.unit.evaluation.trained_run import train

LAUNCH = LaunchConfig(kind=LaunchKind.slurm, gpus_per_node=2, partition="gpu", environment={"A": "b"})


@pytest.fixture
def cluster(monkeypatch):
    """A queue that a job is in for two looks; remembers the commands."""

    class Cluster:
        looks, lines, variables, codes = 0, None, None, None

    def jobs_of(run_dir: Path) -> list[Job]:
        Cluster.looks = max(0, Cluster.looks - 1)
        return [Job("7", "x", "RUNNING", "", "n")] if Cluster.looks else []

    class Process:
        def __init__(self, line, *, env, **_):
            Cluster.lines.append(line)
            Cluster.variables.append(env.get("A"))
            Cluster.looks, self.returncode = 3, Cluster.codes[0]

        def poll(self) -> int:
            return self.returncode

    Cluster.lines, Cluster.variables, Cluster.codes = [], [], [0]
    monkeypatch.setattr(stages.slurm, "jobs_of", jobs_of)
    monkeypatch.setattr(stages.subprocess, "Popen", Process)
    return Cluster


def stage(run_dir: Path, *, trains: bool) -> Stage:
    return Stage(name="s", arguments=["pretrain", "launch=slurm"], run_dir=run_dir, trains=trains)


def test_training_is_submitted_waited_for_and_judged_by_its_last_step(cluster, tmp_path):
    waits = []
    run = SlurmStages(LAUNCH, pause=waits.append)
    assert run.run(stage(tmp_path, trains=True), tmp_path / "log") == 1, "the job ended without a last step"
    assert cluster.lines[0][1:] == ["-m", "loopcoder_train.cli.main", "pretrain", "launch=slurm"] and len(waits) == 2
    cluster.codes[0] = 2
    assert run.run(stage(tmp_path, trains=True), tmp_path / "log") == 2, "what sbatch refuses is not waited for"


def test_a_job_in_the_queue_and_a_trained_run_are_not_submitted_again(cluster, tmp_path):
    run_dir = train(tmp_path)
    cluster.looks = 3
    waits = []
    run = SlurmStages(LAUNCH, pause=waits.append)
    assert run.run(stage(run_dir, trains=True), tmp_path / "log") == 0
    assert cluster.lines == [] and len(waits) == 1
    assert run.run(stage(run_dir, trains=True), tmp_path / "log") == 0 and cluster.lines == []


def test_a_queue_that_does_not_answer_is_asked_again(cluster, tmp_path, monkeypatch):
    run_dir, answers = tmp_path, [UserError("squeue: timed out")] * 2

    def jobs_of(_: Path) -> list[Job]:
        if answers:
            raise answers.pop()
        return []

    run = SlurmStages(LAUNCH, pause=lambda seconds: False)
    monkeypatch.setattr(stages.slurm, "jobs_of", jobs_of)
    assert run._is_queued(run_dir, tmp_path / "log") is False and not answers
    assert (tmp_path / "log").read_text().count("timed out; asking again") == 2
    answers.extend([UserError("squeue: gone")] * stages.MOST_QUESTIONS)
    with pytest.raises(UserError, match="gone"):
        run._is_queued(run_dir, tmp_path / "log")


def test_the_rest_goes_through_srun(cluster, tmp_path):
    run = SlurmStages(LAUNCH, pause=lambda seconds: False)
    assert run.run(stage(tmp_path, trains=False), tmp_path / "log") == 0
    line = cluster.lines[0]
    assert line[:3] == ["srun", "--nodes=1", "--ntasks=1"] and "--partition=gpu" in line
    assert f"--job-name={job_name(tmp_path)}-read" in line and "--dependency=singleton" in line
    assert "--gpus-per-node=2" in line and line[-2:] == ["pretrain", "launch=slurm"] and cluster.variables == ["b"]


@pytest.mark.parametrize(("returncode", "code"), [(130, 130), (143, 143), (-15, 143), (75, 75)])
def test_a_stage_that_slurm_ends_costs_its_arm_only(cluster, tmp_path, returncode, code):
    arms = []
    for name in ("x", "y"):
        own = Arm(name=name, label=name, value=1, seed=0, reference=None, changes={})
        arms.append((own, [stage(tmp_path / name, trains=False)]))
    cluster.codes[0] = returncode
    run = SlurmStages(LAUNCH, pause=lambda seconds: False)

    def of_arm(stage: Stage, log: Path) -> int:
        return run.run(stage, log) if log.parent.parent.name == "x" else 0

    outcomes = run_arms_together(tmp_path, arms, of_arm, print)
    assert [(outcome.failed, outcome.code) for outcome in outcomes] == [("s", code), (None, 0)]


def test_one_signal_for_a_stage_and_the_sweep_is_a_stop(cluster, tmp_path):
    """Ctrl-C, or the end of the job that the sweep is in, may be felt by srun first."""
    cluster.codes[0] = 143
    run = SlurmStages(LAUNCH, pause=lambda seconds: run._received(signal.SIGTERM, None) or True)
    with pytest.raises(Stopped) as stopped:
        run.run(stage(tmp_path, trains=False), tmp_path / "log")
    assert stopped.value.code == 143


def test_a_stop_ends_the_waiting_and_not_the_job(cluster, tmp_path):
    run = SlurmStages(LAUNCH)
    cluster.looks = 1000
    run._received(signal.SIGTERM, None)
    with pytest.raises(Stopped) as stopped:
        run.run(stage(tmp_path, trains=True), tmp_path / "log")
    assert stopped.value.code == 143 and cluster.lines == []
