"""The batch script: what the configuration asks for stands in it, and nothing of it is ever read as shell."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from launch import slurm
from launch.node import place
from loopcoder_train.config import LaunchConfig, LaunchKind, ParallelConfig, TrainingConfig, UserError
from loopcoder_train.config.launch import time_limit_seconds
from tests.unit.config.test_config_io import make_config

HOSTILE = ["a b", "$(touch owned)", "`touch owned`", "; touch owned", "& touch owned #", "é", "a=b,c", "*", "~", "-n"]


def launch(**options) -> LaunchConfig:
    return LaunchConfig(kind=LaunchKind.slurm, **options)


def script(tmp_path, *, run="r", world_size=1, directory=None, **options) -> str:
    parallel = ParallelConfig(world_size=world_size)
    training = TrainingConfig(num_steps=1, global_batch_size=world_size, micro_batch_size=1)
    config = make_config(launch=launch(**options), parallel=parallel, training=training, run_dir=str(tmp_path / run))
    return slurm.render(config, tmp_path / run / "run.yaml", directory or tmp_path)


def sbatch_lines(text: str) -> list[str]:
    """What sbatch reads: it stops at the first line that is no comment."""
    lines = []
    for line in text.splitlines()[1:]:
        if line and not line.startswith("#"):
            return lines
        if line.startswith("#SBATCH "):
            lines.append(line.removeprefix("#SBATCH "))
    raise AssertionError("no commands")


def test_what_is_asked_for_stands_in_it(tmp_path):
    text = script(
        tmp_path, world_size=16, nodes=2, gpus_per_node=8, cpus_per_task=96, partition="gpu", account="p-1",
        time_limit="1-00:00:00", signal_lead_seconds=600, sbatch_lines=["--qos=long", "--exclusive"],
        environment={"NCCL_SOCKET_IFNAME": "ib0"}, container_image="ngc.io/x+y:1", container_mounts="/a:/b",
    )  # fmt: skip
    log = f'--output="{tmp_path}/r/logs/job-%j.log"'
    assert set(sbatch_lines(text)) == {
        f"--job-name={slurm.job_name(tmp_path / 'r')}", "--dependency=singleton", "--nodes=2", "--ntasks-per-node=1",
        "--cpus-per-task=96", "--gpus-per-node=8", "--partition=gpu", "--account=p-1", "--time=1-00:00:00",
        "--qos=long", "--exclusive", "--signal=B:USR2@600", "--requeue", "--open-mode=append", log,
    }  # fmt: skip
    assert "export NCCL_SOCKET_IFNAME=ib0\n" in text
    assert "--container-image=ngc.io/x+y:1 --container-mounts=/a:/b" in text
    assert f"python3 -m launch.node --config {tmp_path}/r/run.yaml --processes 8 " in text
    assert "%{" not in text


def test_defaults_ask_for_no_more_than_they_say(tmp_path):
    text = script(tmp_path)
    assert not re.search(r"gpus|partition=|account=|time=|container", "\n".join(sbatch_lines(text)))
    assert "--cpus-per-task=1" in sbatch_lines(text) and "--processes 1 " in text


def test_every_exported_variable_is_explained(tmp_path):
    lines = script(tmp_path, environment={"B": "2", "A": "1"}).splitlines()
    exports = [index for index, line in enumerate(lines) if line.startswith("export ")]
    assert len(exports) == 5
    for index in exports:
        before = lines[index - 1]
        assert before.startswith(("# ", "export A=")), before


def test_it_is_a_script_that_bash_can_read(tmp_path):
    text = script(tmp_path, environment={"A": 'it\'s "x" $y `z` \\ %{nodes}'})
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)


@pytest.mark.parametrize("value", HOSTILE)
def test_no_value_reaches_the_shell(tmp_path, value):
    """The script runs with stand-ins for SLURM's commands; they are given what was configured, word for word."""
    folder, directory = tmp_path / value / "x", tmp_path / f"from {value}"
    folder.mkdir(parents=True), directory.mkdir()
    text = script(folder, run=value, directory=directory, environment={"E": value}, python=value, container_image=value)
    commands = tmp_path / "commands"
    commands.mkdir()
    for name in ("srun", "scontrol", "squeue"):
        (commands / name).write_text(f'#!/bin/bash\n. {shlex.quote(str(commands / "answers"))}\n{name}_ "$@"\n')
        (commands / name).chmod(0o755)
    (commands / "answers").write_text(
        'scontrol_() { case "$2" in hostnames) printf "n1\\nn2\\n" ;; node) printf '
        '"NodeName=n1 X NodeAddr=10.0.0.1 Y\\nNodeName=n2 X NodeAddr=10.0.0.2 Y\\n" ;; esac; }\n'
        "squeue_() { echo 4000000000; }\n"
        'srun_() { printf "%s\\0" "$@" "$E" "$PWD" "$LOOPCODER_NODES" "$SLURM_JOB_END_TIME"; }\n'
    )
    variables = {"PATH": f"{commands}:/usr/bin:/bin", "SLURM_JOB_ID": "40007", "SLURM_JOB_NODELIST": "n[1-2]"}
    variables |= {"SLURM_CPUS_PER_TASK": "1"}
    result = subprocess.run(["bash", "-s"], input=text, env=variables, capture_output=True, text=True, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    words = result.stdout.split("\0")[:-1]
    assert words[3:] == [
        f"--container-image={value}", value, "-m", "launch.node", "--config", str(folder / value / "run.yaml"),
        "--processes", "1", "--endpoint", "10.0.0.1:20007",
        value, str(directory), "n1=10.0.0.1\nn2=10.0.0.2", "4000000000",
    ]  # fmt: skip
    assert not list(tmp_path.rglob("owned"))


@pytest.mark.parametrize("character", ["%", '"', "'", "\\", "\n", "\t", "\x7f"])
def test_folders_that_sbatch_would_read_otherwise_are_refused(tmp_path, character):
    for place_ in ({"run": f"a{character}b"}, {"directory": Path(f"/a{character}b")}):
        with pytest.raises(UserError, match="may not hold") as refusal:
            script(tmp_path, **place_)
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"partition": "a\n#SBATCH --uid=0"}, "launch.partition="),
        ({"partition": "$(x)"}, "launch.partition="),
        ({"account": "a b"}, "launch.account='a b'"),
        ({"time_limit": "1h"}, "launch.time_limit='1h'.*HH:MM:SS"),
        ({"time_limit": "5"}, "launch.signal_lead_seconds=300: must be less than launch.time_limit=5.*try 60"),
        ({"sbatch_lines": ["--qos=x\nrm -rf /"]}, "launch.sbatch_lines"),
        ({"sbatch_lines": ["-t 5"]}, "launch.sbatch_lines='-t 5'.*--option=value"),
        ({"sbatch_lines": ["--time=5"]}, "--time is set by launch.time_limit"),
        ({"sbatch_lines": ["--signal=TERM"]}, "--signal is set by launch.signal_lead_seconds"),
        ({"environment": {"A;B": "x"}}, "launch.environment='A;B'"),
        ({"environment": {"A": "x\ny"}}, "launch.environment.A="),
        ({"python": ""}, "launch.python=''"),
        ({"container_mounts": "/a:/b"}, "needs a container; give launch.container_image"),
        ({"nodes": 0}, "launch.nodes=0"),
        ({"gpus_per_node": -1}, "launch.gpus_per_node=-1"),
        ({"gpus_per_node": 8, "processes_per_node": 4}, "launch.processes_per_node=4: must be launch.gpus_per_node=8"),
        ({"signal_lead_seconds": 0}, "launch.signal_lead_seconds=0"),
        ({"start_workers": False}, "launch.start_workers=False.*launch.dry_run=true"),
    ],
)
def test_what_cannot_be_is_one_line(options, said):
    with pytest.raises(UserError, match=said) as refusal:
        launch(**options)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("options", [{"dry_run": True}, {"nodes": 2}, {"environment": {"A": "1"}}, {"time_limit": "5"}])
def test_an_option_of_slurm_without_slurm_is_refused(options):
    (name,) = options
    with pytest.raises(UserError, match=rf"launch\.{name}=.* is an option of launch=slurm; add launch=slurm"):
        LaunchConfig(**options)


@pytest.mark.parametrize(
    ("world_size", "options", "remedy"),
    [
        (8, {"nodes": 3, "gpus_per_node": 3}, "launch.nodes=4 launch.gpus_per_node=2"),
        (16, {"nodes": 1, "gpus_per_node": 8}, "launch.nodes=2"),
        (1, {"nodes": 2, "gpus_per_node": 8}, "launch.nodes=1 launch.gpus_per_node=1"),
        (6, {"processes_per_node": 4}, "launch.nodes=2 launch.processes_per_node=3"),
        (7, {"nodes": 2, "processes_per_node": 2}, "launch.nodes=7 launch.processes_per_node=1"),
    ],
)
def test_processes_must_fit_and_the_alternative_does(tmp_path, world_size, options, remedy):
    with pytest.raises(UserError, match=f"parallel.world_size={world_size}: must equal") as refusal:
        script(tmp_path, world_size=world_size, **options)
    assert str(refusal.value).endswith(f"try {remedy}")
    works = {key: int(value) for key, value in re.findall(r"launch\.(\w+)=(\d+)", remedy)}
    script(tmp_path, world_size=world_size, **options | works)


def test_time_limits_as_sbatch_reads_them():
    minute, hour, day = 60, 3600, 86400
    for text, seconds in {
        "90": 90 * minute, "5:30": 5 * minute + 30, "2:00:05": 2 * hour + 5, "1-12": day + 12 * hour,
        "1-12:30": day + 12 * hour + 30 * minute, "2-00:00:01": 2 * day + 1,
    }.items():  # fmt: skip
        assert time_limit_seconds(text) == seconds, text
        launch(time_limit=text, signal_lead_seconds=1)


def test_one_name_per_run_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = slurm.job_name(Path("runs/a b,é=1"))
    assert name == slurm.job_name(tmp_path / "runs/a b,é=1") and re.fullmatch(r"[\w.=+-]+", name, re.ASCII)
    assert len({slurm.job_name(Path(run)) for run in ("a b", "a_b", "x/a_b", "a_b.old-1")}) == 4
    assert len(slurm.job_name(Path("x" * 200))) < 90


def test_which_node_this_is():
    environment = {
        "LOOPCODER_NODES": "n1=10.0.0.1\nn2=10.0.0.2", "SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2",
        "SLURMD_NODENAME": "n2", "SLURM_NODEID": "1",
    }  # fmt: skip
    assert place(environment) == {"count": 2, "address": "10.0.0.2", "is_host": False, "job": "job-7"}
    again = place(environment | {"SLURM_RESTART_COUNT": "2", "SLURM_NODEID": "0", "SLURMD_NODENAME": "n1"})
    assert again == {"count": 2, "address": "10.0.0.1", "is_host": True, "job": "job-7-requeue-2"}
