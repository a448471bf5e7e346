"""Jobs on a real SLURM: their numbers are those of the local run, whatever the cluster does to them meanwhile."""

import pytest

from tests.integration.conftest import NUM_STEPS, losses, pretrain_arguments
from tests.integration.running import events
from tests.slurm.conftest import ON_TWO_NODES, tell

pytestmark = [pytest.mark.slurm, pytest.mark.distributed, pytest.mark.timeout(900)]


def test_two_nodes_and_an_end_announced_equal_the_local_run(jobs, tmp_path, straight):
    """What SLURM does ahead of a time limit: SIGUSR2 to the batch shell. The job saves, comes back and goes on."""
    run_dir = tmp_path / "run a=1,é $(touch owned)"
    job = jobs.pretrain(run_dir)
    jobs.wait_for_step(run_dir, 3)
    jobs.cluster.run("scancel", "--batch", "--signal=USR2", job)
    jobs.wait_for_event(run_dir, "asked_to_stop")
    jobs.wait_for_event(run_dir, "resumed")
    jobs.finish(job, run_dir)
    (stop,) = events(run_dir, "asked_to_stop")
    assert (stop["cause"], stop["exit_code"]) == ("usr2", 75) and stop["step"] < NUM_STEPS
    assert f"requeue of job {job}" in tell(run_dir)
    assert jobs.cluster.details(job)["Restarts"] == "1"
    assert losses(run_dir) == losses(straight)
    folders = {path.name for path in (run_dir / "logs").iterdir()}
    assert folders == {f"job-{job}", f"job-{job}-requeue-1", f"job-{job}.log"}
    assert (run_dir / "logs" / f"job-{job}" / "rank-1.stderr").exists()


def test_dry_run_and_stop_and_runs(jobs, tmp_path):
    run_dir = tmp_path / "run"
    shown = jobs.loopcoder(*pretrain_arguments(run_dir, jobs.corpus, *ON_TWO_NODES, "launch.dry_run=true"))
    assert shown.code == 0 and shown.stdout.startswith("#!/usr/bin/env bash") and not run_dir.exists()
    job = jobs.pretrain(run_dir)
    jobs.wait_for_step(run_dir, 2)
    listed = jobs.loopcoder("runs", str(tmp_path))
    assert "running" in listed.stdout and f"job {job} on n[" in listed.stdout
    stopped = jobs.loopcoder("stop", str(run_dir))
    assert stopped.code == 0 and f"asked job {job}; stopped (SIGINT to rank" in stopped.stdout, stopped
    details = jobs.cluster.details(job)
    assert (details["JobState"], details["ExitCode"], details["Restarts"]) == ("FAILED", "130:0", "0")
