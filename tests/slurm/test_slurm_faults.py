"""What a cluster does to jobs: time limits, pre-emption, requeues, nodes that go down, twins, sweeps, wrong options."""

import json
import re
import time

import pytest

from tests.integration.conftest import NUM_STEPS, losses, pretrain_arguments
from tests.integration.running import events, newest_step
from tests.slurm.conftest import ON_TWO_NODES, SLOW, tell

pytestmark = [pytest.mark.slurm, pytest.mark.distributed, pytest.mark.faults, pytest.mark.timeout(1800)]
ENDLESS = ["training.num_steps=100000", "data.max_repeats=1000000"]


def test_requeued_by_hand(jobs, tmp_path, straight):
    run_dir = tmp_path / "run"
    job = jobs.pretrain(run_dir)
    jobs.wait_for_step(run_dir, 3)
    jobs.cluster.run("scontrol", "requeue", job)
    jobs.wait_for_event(run_dir, "resumed")
    jobs.finish(job, run_dir)
    (stop,) = events(run_dir, "asked_to_stop")
    assert stop["cause"] == "term" and losses(run_dir) == losses(straight)
    assert jobs.cluster.details(job)["Restarts"] == "1", "requeued by SLURM and by the script"


def test_preempted_by_an_urgent_job(jobs, tmp_path, straight):
    run_dir = tmp_path / "run"
    job = jobs.pretrain(run_dir)
    jobs.wait_for_step(run_dir, 3)
    urgent = jobs.cluster.run(
        "sbatch", "--parsable", "--partition=urgent", "--nodes=3", "--exclusive", "--output=/dev/null", "--wrap=sleep 5"
    )
    jobs.wait_for_event(run_dir, "asked_to_stop")
    jobs.cluster.wait_for(urgent, "", seconds=200)
    jobs.finish(job, run_dir)
    assert len(events(run_dir, "resumed")) == 1 and losses(run_dir) == losses(straight)


def test_a_time_limit(jobs, tmp_path):
    """Three minutes, of which SLURM announces the end: saved before it, requeued, resumed where it stood."""
    run_dir = tmp_path / "run"
    job = jobs.pretrain(run_dir, "launch.time_limit=3", "launch.signal_lead_seconds=60", *ENDLESS)
    jobs.wait_for_event(run_dir, "asked_to_stop", seconds=300)
    (stop,) = events(run_dir, "asked_to_stop")
    assert stop["cause"] in ("usr2", "time_limit") and stop["step"] > 0
    jobs.wait_for_event(run_dir, "resumed")
    (resumed,) = events(run_dir, "resumed")
    assert resumed["step"] == stop["step"] and jobs.cluster.details(job)["Restarts"] == "1"
    assert jobs.loopcoder("stop", str(run_dir)).code == 0


def test_a_node_goes_down(jobs, tmp_path, straight):
    run_dir = tmp_path / "run"
    job = jobs.pretrain(run_dir, "checkpoint.every_steps=2")
    jobs.wait_for_step(run_dir, 3)
    lost = jobs.cluster.details(job)["BatchHost"]
    jobs.cluster.kill_node(lost)
    try:
        jobs.wait_for_event(run_dir, "resumed", seconds=400)
        assert lost not in hosts(jobs.cluster.details(job)["NodeList"])
        jobs.finish(job, run_dir)
    finally:
        jobs.cluster.start_node(lost)
        jobs.cluster.wait_for_nodes(3)
    assert losses(run_dir) == losses(straight)


def hosts(expression: str) -> set[str]:
    """`n[1-2,3]` -> its names; enough for three nodes."""
    numbers = re.findall(r"\d+(?:-\d+)?", expression)
    spans = (number.partition("-") for number in numbers)
    return {f"n{n}" for first, _, last in spans for n in range(int(first), int(last or first) + 1)}


def test_twins_take_turns(jobs, tmp_path, straight):
    run_dir = tmp_path / "run"
    first = jobs.pretrain(run_dir)
    jobs.wait_for_step(run_dir, 2)
    second = jobs.pretrain(run_dir)
    time.sleep(3)
    assert (jobs.cluster.state(first), jobs.cluster.state(second)) == ("RUNNING", "PENDING")
    other = jobs.loopcoder(*pretrain_arguments(run_dir, jobs.corpus, *ON_TWO_NODES, *SLOW, "checkpoint.every_steps=3"))
    assert other.code == 2 and f"job {first} (running) has this run_dir with other options" in other.stderr
    jobs.finish(first, run_dir)
    jobs.finish(second, run_dir)
    assert losses(run_dir) == losses(straight)
    assert f"nothing left to do: training.num_steps or stop_after_step is {NUM_STEPS}" in tell(run_dir)


def test_a_sweep_is_one_job_per_arm(jobs, tmp_path):
    run_dir = tmp_path / "sweep"
    options = [*ON_TWO_NODES, "training.stop_after_step=2", "model.num_loops=1,2,3,4"]
    outcome = jobs.loopcoder(*pretrain_arguments(run_dir, jobs.corpus, *options)[:1], "-m",
                             *pretrain_arguments(run_dir, jobs.corpus, *options)[1:])  # fmt: skip
    assert outcome.code == 0, outcome.stderr
    submitted = re.findall(r"submitted as job (\d+);", outcome.stdout)
    assert len(submitted) == len(set(submitted)) == 4
    for job in submitted:
        jobs.cluster.wait_for(job, "", seconds=600)
    runs = [json.loads(line) for line in jobs.loopcoder("runs", str(run_dir), "json=true").stdout.splitlines()]
    assert [run["run_dir"].rpartition("=")[2] for run in runs] == ["1", "2", "3", "4"]
    assert [(run["state"], run["step"]) for run in runs] == [("stopped", 2)] * 4
    assert len({run["loss"] for run in runs}) == 4


def test_scancel_saves_and_does_not_come_back(jobs, tmp_path):
    run_dir = tmp_path / "run"
    job = jobs.pretrain(run_dir)
    jobs.wait_for_step(run_dir, 3)
    jobs.cluster.run("scancel", job)
    jobs.cluster.wait_for(job, "", seconds=120)
    assert jobs.cluster.details(job)["JobState"] == "CANCELLED"
    (stop,) = events(run_dir, "asked_to_stop")
    assert stop["step"] == newest_step(run_dir)


def test_a_users_error_in_the_job_is_neither_repeated_nor_hidden(jobs, tmp_path):
    run_dir = tmp_path / "run"
    jobs.cluster.run("scontrol", "update", "PartitionName=cpu", "State=DOWN")  # the job waits until it is spoilt
    job = jobs.pretrain(run_dir)
    run_yaml = run_dir / "run.yaml"
    run_yaml.write_text(run_yaml.read_text().replace("num_threads: 1", "num_threds: 1"))
    jobs.cluster.run("scontrol", "update", "PartitionName=cpu", "State=UP")
    jobs.cluster.wait_for(job, "", seconds=200)
    details = jobs.cluster.details(job)
    assert (details["JobState"], details["ExitCode"], details["Restarts"]) == ("FAILED", "2:0", "0"), tell(run_dir)
    assert "training.num_threds: unknown option; did you mean training.num_threads?" in tell(run_dir)


def test_a_wrong_partition_is_one_line(jobs, tmp_path):
    arguments = pretrain_arguments(tmp_path / "run", jobs.corpus, *ON_TWO_NODES, "launch.partition=gpu")
    outcome = jobs.loopcoder(*arguments)
    assert outcome.code == 2 and outcome.stderr.count("\n") == 1
    assert "invalid partition specified: gpu" in outcome.stderr
