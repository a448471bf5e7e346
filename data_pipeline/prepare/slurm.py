"""A build on a SLURM cluster: submitted once, looked at by the same command, finished by its own last job."""

import json
import subprocess

from data_pipeline.errors import DataError
from data_pipeline.manifest import write_durably
from data_pipeline.prepare import graph
from data_pipeline.prepare.build_config import content_config
from data_pipeline.prepare.graph import Progress
from data_pipeline.prepare.job import Job

_JOBS_FILE = "jobs.json"


def submit(job: Job, progress: Progress) -> None:
    """Submit the phases that are not done, one job array each. Raises DataError when SLURM refuses."""
    try:
        ids = graph.submit(job)
    except (OSError, subprocess.CalledProcessError) as error:
        raise DataError(
            f"executor.kind=slurm: sbatch could not be run ({error}), or refused for the reason that it gives above; "
            "correct executor.partition and the other options of executor"
        ) from error
    write_durably(job.workspace.folder / _JOBS_FILE, json.dumps(ids))
    progress(
        f"{job.workspace.folder}: submitted {len(ids)} job arrays, {ids[0]} to {ids[-1]}; they wait for each "
        "other. The same command shows how far they are"
    )


def is_running(job: Job, progress: Progress) -> bool:
    """Whether jobs of this build are in the queue; then `progress` hears how far they are.

    Raises DataError when they build something else there, and the DataError of a task that failed, once no job is left;
    the next command submits what is not done.
    """
    path = job.workspace.folder / _JOBS_FILE
    if not path.is_file():
        return False
    own = set(json.loads(path.read_bytes()))
    if running := sorted(own & _queue()):
        if job.workspace.load_plan() != content_config(job.config):
            raise DataError(
                f"{job.workspace.folder}: jobs {', '.join(running)} build there with other options; wait for them, end "
                "them with scancel, or name another folder"
            )
        for name, done, tasks in graph.state(job):
            progress(f"{name}: {done} of {tasks} tasks done")
        return True
    path.unlink()
    if error := graph.first_error(job):
        raise DataError(f"{error} (the jobs have ended; the same command submits again what is not done)")
    return False


def _queue() -> set[str]:
    try:
        result = subprocess.run(
            ["squeue", "--noheader", "--format=%A,%F"], check=True, capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise DataError(f"executor.kind=slurm: squeue failed ({error}); run where squeue works") from error
    return {job_id for line in result.stdout.split() for job_id in line.split(",")}
