"""The tasks of a phase through datatrove's executors: processes here, a SLURM job array, or Ray.

The journey: a `Step` holds what a task needs (options, folder, name of the phase) and is what datatrove runs as its
pipeline, once per task -> the executor remembers in `logs/<phase>/completions` which tasks are done, so a build that
was killed goes on with the others. An error of a task is written down for the command that waits or looks later.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.errors import DataError
from data_pipeline.prepare.build_config import BuildConfig
from data_pipeline.prepare.executor_config import ExecutorConfig, ExecutorKind
from data_pipeline.prepare.job import Job
from data_pipeline.prepare.workspace import Workspace


@dataclass(frozen=True, slots=True)
class Phase:
    """One node of the graph. run(job, task) is file in, file out; num_tasks(job) says how many there are."""

    name: str
    run: Callable[[Job, int], None]
    num_tasks: Callable[[Job], int]


@dataclass(slots=True)
class Step:
    """A phase as datatrove calls it. It is pickled for other machines, so it holds plain values only."""

    config: BuildConfig
    folder: str
    phase: Phase

    def __call__(self, data: Any, rank: int, world_size: int) -> None:
        """Do task `rank`."""
        workspace = Workspace(Path(self.folder))
        try:
            self.phase.run(Job(self.config, workspace), rank)
        except DataError as error:
            workspace.record_error(self.phase.name, rank, str(error))
            raise


@contextlib.contextmanager
def connected(options: ExecutorConfig) -> Iterator[None]:
    """The cluster that tasks are given to, for as long as a build waits for them."""
    if options.kind is not ExecutorKind.ray:
        yield
        return
    import ray

    where = {"address": options.ray_address} if options.ray_address else {"num_cpus": options.workers}
    try:
        ray.init(**where, log_to_driver=False, logging_level="ERROR", include_dashboard=False)
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        raise DataError(
            f"executor.ray_address={options.ray_address}: no Ray cluster answers ({' '.join(str(error).split())}); "
            "correct it, or leave it empty for one on this machine"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def run_phase(job: Job, phase: Phase) -> None:
    """Do the tasks of a phase that are not done, and wait for them. Raises the DataError of a task."""
    with _quiet():
        executor = _executor(job, phase)
        try:
            executor.run()
        except Exception as error:  # whatever the executor makes of it, a task's own error is what counts
            if errors := job.workspace.errors():
                raise DataError(errors[0]) from error
            raise


def submit_phases(job: Job, phases: Sequence[Phase]) -> list[str]:
    """Submit every phase to SLURM, each after the one before. Returns the job ids; phases that are done have none."""
    before, ids = None, []
    for phase in phases:
        with _quiet():
            executor = _executor(job, phase, depends=before)
            executor.launch_job()
        if executor.job_id != -1:
            before = executor
            ids.append(str(executor.job_id))
    return ids


def tasks_done(job: Job, phase: Phase) -> int:
    """How many tasks of a phase are done."""
    folder = job.workspace.logs(phase.name) / "completions"
    return sum(1 for _ in folder.iterdir()) if folder.is_dir() else 0


def _executor(job: Job, phase: Phase, depends: Any = None) -> Any:
    """datatrove's executor for one phase. Imported here: reading a corpus must not pay for it."""
    options, tasks = job.config.executor, phase.num_tasks(job)
    common = {
        "pipeline": [Step(job.config, str(job.workspace.folder), phase)],
        "tasks": tasks,
        "logging_dir": str(job.workspace.logs(phase.name)),
    }
    workers = min(options.workers or len(os.sched_getaffinity(0)), tasks)
    match options.kind:
        case ExecutorKind.local:
            from data_pipeline.prepare.local_executor import QuietLocalExecutor

            return QuietLocalExecutor(workers=workers, **common)
        case ExecutorKind.ray:
            from datatrove.executor import RayPipelineExecutor

            return RayPipelineExecutor(
                workers=workers, cpus_per_task=options.cpus_per_task, mem_per_cpu_gb=options.memory_per_cpu_gb, **common
            )
        case ExecutorKind.slurm:
            return _slurm_executor(job, phase, depends, common)


def _slurm_executor(job: Job, phase: Phase, depends: Any, common: dict[str, Any]) -> Any:
    from datatrove.executor import SlurmPipelineExecutor

    options = job.config.executor
    return SlurmPipelineExecutor(
        time=options.time_limit,
        partition=options.partition,
        cpus_per_task=options.cpus_per_task,
        mem_per_cpu_gb=options.memory_per_cpu_gb,
        workers=options.workers or -1,
        job_name=f"{Path(job.config.corpus_dir).name}-{phase.name}",
        qos="",
        # datatrove's `launch_pickled_pipeline` must be the one of this interpreter.
        env_command=f"export PATH={Path(sys.executable).parent}:$PATH",
        # A phase after a failed one would wait for ever.
        sbatch_args={"kill-on-invalid-dep": "yes", **options.sbatch_options},
        max_array_size=options.max_array_size,
        depends=depends,
        **common,
    )


@contextlib.contextmanager
def _quiet() -> Any:
    """datatrove's own messages go to its log files only."""
    os.environ.setdefault("DATATROVE_COLORIZE_LOGS", "no")
    from datatrove.utils.logging import logger  # its import adds a handler for the terminal

    logger.remove()
    yield
