"""A run as one SLURM job: the batch script (`job.sbatch` with its gaps filled), sbatch, and who is in the queue.

Nothing of the configuration reaches a shell unquoted: what stands in `#SBATCH` lines has been checked, the rest is
quoted.
"""

import hashlib
import re
import shlex
import string
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loopcoder_train.config.errors import UserError, require
from loopcoder_train.config.launch import LaunchConfig
from loopcoder_train.config.process import EXIT_REQUEUE
from loopcoder_train.config.run import RunConfig

SCRIPT_FILE = "job.sbatch"
TEMPLATE = Path(__file__).with_name(SCRIPT_FILE)
COMMAND_SECONDS = 60.0  # how long a command of SLURM may take to answer

# In file names sbatch reads % as the start of a pattern, \ as an escape; quotes and control characters end the line's
# value. None of them is of any use in a folder's name.
_UNUSABLE_IN_PATHS = re.compile(r"[%\\\"'\x00-\x1f\x7f]")
_UNUSABLE_IN_NAMES = re.compile(r"[^\w.=+-]+", re.ASCII)
_LONGEST_NAME = 60


class _Template(string.Template):
    """`%{name}`: `$` means something to the shell."""

    delimiter = "%"
    pattern = r"%(?:(?P<escaped>(?!))|(?P<named>(?!))|\{(?P<braced>[a-z_]+)\}|(?P<invalid>(?!)))"


@dataclass(frozen=True, slots=True)
class Job:
    """A job in the queue."""

    id: str
    name: str
    state: str  # SLURM's word: PENDING, RUNNING, COMPLETING, ...
    reason: str  # why it waits
    nodes: str  # where it runs; empty while it waits

    @property
    def is_running(self) -> bool:
        """Whether its processes may exist."""
        return self.state not in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT")


def job_name(run_dir: Path) -> str:
    """One name per run folder: SLURM runs one job of a name at a time (`--dependency=singleton`)."""
    folder = str(run_dir.absolute())
    digest = hashlib.sha256(folder.encode()).hexdigest()[:10]
    return f"loopcoder-{_UNUSABLE_IN_NAMES.sub('_', run_dir.name)[-_LONGEST_NAME:]}-{digest}"


def render(config: RunConfig, run_yaml: Path, directory: Path) -> str:
    """The batch script. `directory`: where the command was given, to which the configuration's paths are relative.

    Raises UserError for paths that cannot stand in such a script.
    """
    launch, run_dir = config.launch, run_yaml.parent.absolute()
    for option, path in (("run_dir", run_dir), ("current folder", directory.absolute())):
        unusable = _UNUSABLE_IN_PATHS.search(str(path))
        rule = "may not hold %, backslashes, quotes or control characters with launch=slurm"
        require(unusable is None, option, repr(str(path)), rule, "give another one")
    values = {
        "nodes": launch.nodes,
        "processes": launch.processes_on_a_node,
        "cpus": launch.cpus_on_a_node,
        "signal_lead_seconds": launch.signal_lead_seconds,
        "run_dir": run_dir,
        "job_name": job_name(run_dir),
        "log": log_file(run_dir, "%j"),
        "directory": shlex.quote(str(directory.absolute())),
        "run_yaml": shlex.quote(str(run_dir / run_yaml.name)),
        "python": shlex.quote(_python(launch)),
        "sbatch_lines": "\n".join(f"#SBATCH {line}" for line in _sbatch_options(launch)) or "# (default partition)",
        "environment": _exports(launch.environment),
        "srun_options": "".join(f" {option}" for option in _srun_options(launch)),
        "exit_requeue": EXIT_REQUEUE,
    }
    return _Template(TEMPLATE.read_text(encoding="utf-8")).substitute(values)


def srun_line(launch: LaunchConfig, run_dir: Path, module: str, arguments: Sequence[str]) -> list[str]:
    """One process of `python -m <module>` on one node of the cluster, which this command waits for.

    It reads `run_dir` and writes its results there: one at a time. One that a killed command left behind, which srun
    outlives, is waited for.
    """
    own = [f"--job-name={job_name(run_dir)}-read", "--dependency=singleton"]
    options = [*own, f"--cpus-per-task={launch.cpus_on_a_node}", *_sbatch_options(launch)]
    containers = [f"--container-{name}={value}" for name, value in _container(launch).items()]
    return ["srun", "--nodes=1", "--ntasks=1", *options, *containers, _python(launch), "-m", module, *arguments]


def log_file(run_dir: Path, job_id: str) -> Path:
    """Where the batch script and rank 0 write; the other ranks and every error: the folder of the same name."""
    return run_dir / "logs" / f"job-{job_id}.log"


def _python(launch: LaunchConfig) -> str:
    return launch.python or ("python3" if launch.container_image else sys.executable)


def _sbatch_options(launch: LaunchConfig) -> list[str]:
    options = {"partition": launch.partition, "account": launch.account, "time": launch.time_limit}
    lines = [f"--{name}={value}" for name, value in options.items() if value is not None]
    if launch.gpus_per_node:
        lines.append(f"--gpus-per-node={launch.gpus_per_node}")
    return lines + launch.sbatch_lines


def _exports(environment: dict[str, str]) -> str:
    if not environment:
        return "# (launch.environment=NAME: VALUE adds more)"
    lines = [f"export {name}={shlex.quote(value)}" for name, value in sorted(environment.items())]
    return "\n".join(["# Asked for by launch.environment.", *lines])


def _srun_options(launch: LaunchConfig) -> list[str]:
    return [f"--container-{name}={shlex.quote(value)}" for name, value in _container(launch).items()]


def _container(launch: LaunchConfig) -> dict[str, str]:
    options = {"image": launch.container_image, "mounts": launch.container_mounts}
    return {name: value for name, value in options.items() if value is not None}


def submit(script: Path) -> str:
    """`sbatch script`; returns the job's id. Raises UserError with what sbatch says when it refuses."""
    answer = _ask("sbatch", "--parsable", str(script))
    return answer.strip().split(";")[0]


def jobs_of(run_dir: Path) -> list[Job]:
    """The jobs in the queue that are of this run folder, the running one first. Raises as `queue`."""
    mine = [job for job in queue() if job.name == job_name(run_dir)]
    return sorted(mine, key=lambda job: not job.is_running)


def queue() -> list[Job]:
    """This user's jobs in the queue. Raises UserError when SLURM cannot be asked."""
    answer = _ask("squeue", "--me", "--noheader", "--format=%i|%j|%T|%r|%N")
    return [Job(*line.split("|")) for line in answer.splitlines() if line.count("|") == 4]


def signal_job(job_id: str, name: str) -> None:
    """Send a signal to every process that the job's steps run, not to its batch shell. Raises UserError."""
    _ask("scancel", f"--signal={name}", job_id)


def cancel(job_id: str) -> None:
    """Take a job out of the queue. Raises UserError."""
    _ask("scancel", job_id)


def was_submitted(run_dir: Path) -> bool:
    """Whether a job of this run folder may be in the queue. Of others SLURM, which may not answer, is not asked."""
    return (run_dir / SCRIPT_FILE).is_file()


def _ask(*command: str) -> str:
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False)
    except FileNotFoundError as error:
        raise UserError(
            f"launch=slurm: {command[0]} is not installed here; give the command on a login node of the cluster"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{command[0]}: no answer within {COMMAND_SECONDS:.0f} s; is slurmctld up?") from error
    if result.returncode != 0:
        text = " ".join(result.stderr.split()) or f"exit code {result.returncode}"
        raise UserError(f"{text}; nothing was changed" if text.startswith(command[0]) else f"{command[0]}: {text}")
    return result.stdout
