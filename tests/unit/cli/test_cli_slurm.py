"""`loopcoder pretrain launch=slurm`: what is submitted, what is refused, what a dry run leaves alone."""

import os
import shlex
from pathlib import Path

import pytest

from launch.slurm import job_name
from loopcoder_train.config.io import read_run_config
from tests.unit.cli.conftest import QUICK

SLURM = (*QUICK, "launch=slurm", "launch.nodes=2")


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Stand-ins for sbatch and squeue; the folder that they write to and read from."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    (folder / "queue").write_text("")
    where = shlex.quote(str(folder))
    sbatch = f'echo "$*" >> {where}/submitted; n=$(wc -l < {where}/submitted); echo "$((40 + n));cluster"'
    for name, does in (("squeue", f"cat {where}/queue"), ("sbatch", sbatch)):
        (folder / name).write_text(f"#!/bin/sh\n{does}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def submitted(slurm) -> list[str]:
    file = slurm / "submitted"
    return file.read_text().splitlines() if file.exists() else []


def test_submits_the_script_and_starts_nothing_here(workplace, started, loopcoder, slurm):
    code, out, error = loopcoder("pretrain", *SLURM)
    assert (code, error) == (0, "") and not started
    assert out == "runs/quickstart: submitted as job 41; log: runs/quickstart/logs/job-41.log\n"
    assert submitted(slurm) == ["--parsable runs/quickstart/job.sbatch"]
    assert read_run_config("runs/quickstart/run.yaml").launch.nodes == 2
    script = Path("runs/quickstart/job.sbatch").read_text()
    assert f"#SBATCH --job-name={job_name(Path('runs/quickstart'))}\n" in script
    assert Path("runs/quickstart/logs").is_dir(), "SLURM does not make the folder of the log"


def test_dry_run_prints_the_same_script_and_touches_nothing(workplace, started, loopcoder, slurm):
    code, out, error = loopcoder("pretrain", *SLURM, "launch.dry_run=true")
    assert (code, error) == (0, "") and list(workplace.iterdir()) == [] and not submitted(slurm)
    loopcoder("pretrain", *SLURM)
    assert out == Path("runs/quickstart/job.sbatch").read_text()


def test_a_sweep_submits_one_job_per_arm(workplace, started, loopcoder, slurm):
    code, out, error = loopcoder("pretrain", "-m", *SLURM, "model.num_loops=1,2,3,4")
    assert (code, error, out.count("submitted as job")) == (0, "", 4)
    arms = [f"runs/quickstart/model.num_loops={loops}" for loops in (1, 2, 3, 4)]
    assert submitted(slurm) == [f"--parsable {arm}/job.sbatch" for arm in arms]
    assert [read_run_config(f"{arm}/run.yaml").model.num_loops for arm in arms] == [1, 2, 3, 4]
    assert len({job_name(Path(arm)) for arm in arms}) == 4


def test_the_same_run_may_be_submitted_again_and_waits(workplace, started, loopcoder, slurm):
    loopcoder("pretrain", *SLURM)
    (slurm / "queue").write_text(f"41|{job_name(Path('runs/quickstart'))}|RUNNING|None|n[1-2]\n")
    code, out, error = loopcoder("pretrain", *SLURM)
    assert (code, error) == (0, "") and len(submitted(slurm)) == 2
    assert "submitted as job 42" in out and "it waits for job 41, which has the same run_dir" in out


def test_a_job_in_the_queue_keeps_its_options(workplace, started, loopcoder, slurm):
    loopcoder("pretrain", *SLURM)
    before = Path("runs/quickstart/run.yaml").read_bytes()
    (slurm / "queue").write_text(f"41|{job_name(Path('runs/quickstart'))}|PENDING|Resources|\n")
    for change in ("checkpoint.every_steps=3", "fresh=true"):
        code, _, error = loopcoder("pretrain", *SLURM, change)
        assert code == 2 and "job 41 (pending) has this run_dir with other options" in error
        assert "loopcoder stop runs/quickstart" in error and error.count("\n") == 1
    assert Path("runs/quickstart/run.yaml").read_bytes() == before and len(submitted(slurm)) == 1


def test_no_slurm_here(workplace, started, loopcoder, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    code, _, error = loopcoder("pretrain", *SLURM)
    assert code == 2 and "launch=slurm: squeue is not installed here" in error and error.count("\n") == 1
    assert not Path("runs").exists()


def test_what_sbatch_refuses_is_one_line(workplace, started, loopcoder, slurm):
    (slurm / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: invalid partition\nsbatch: error: x' >&2; exit 1\n")
    code, out, error = loopcoder("pretrain", *SLURM)
    assert (code, out) == (2, "") and error.count("\n") == 1 and "sbatch: error: invalid partition" in error


def test_processes_must_fit_the_nodes(workplace, started, loopcoder, slurm):
    code, _, error = loopcoder("pretrain", *QUICK, "launch=slurm", "launch.nodes=3")
    assert code == 2 and "parallel.world_size=2: must equal" in error and "try launch.nodes=2" in error
    assert not submitted(slurm)


def test_options_of_slurm_need_it(workplace, started, loopcoder):
    code, _, error = loopcoder("pretrain", *QUICK, "launch.nodes=2")
    assert code == 2 and "launch.nodes=2: is an option of launch=slurm; add launch=slurm" in error and not started
