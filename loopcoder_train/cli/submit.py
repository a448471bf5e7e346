"""`loopcoder pretrain launch=slurm`: get the run folder ready and submit its job, instead of starting the workers."""

import dataclasses
from pathlib import Path

from launch import slurm
from loopcoder_train.cli.run_dir import prepare
from loopcoder_train.config.errors import UserError
from loopcoder_train.config.io import RUN_CONFIG_FILE, read_run_config
from loopcoder_train.config.run import RunConfig
from loopcoder_train.runtime.lock import RunLock

LAUNCHER_LOCK = "launcher"


def submit(config: RunConfig) -> int:
    """Submit the job of `config`, or with `launch.dry_run` only print its script. Returns the exit code."""
    run_dir = Path(config.run_dir)
    script = slurm.render(config, run_dir / RUN_CONFIG_FILE, Path.cwd())
    if config.launch.dry_run:
        print(script, end="")
        return 0
    waiting_for = slurm.jobs_of(run_dir)
    if waiting_for:
        _check_same_run(config, waiting_for[0])
    else:
        with RunLock(run_dir, name=LAUNCHER_LOCK) as lock:
            prepare(config, lock)
    file = run_dir / slurm.SCRIPT_FILE
    (run_dir / "logs").mkdir(exist_ok=True)
    file.write_text(script, encoding="utf-8")
    job_id = slurm.submit(file)
    print(f"{run_dir}: submitted as job {job_id}; log: {slurm.log_file(run_dir, job_id)}")
    if waiting_for:
        print(f"{run_dir}: it waits for job {waiting_for[0].id}, which has the same run_dir")
    return 0


def _check_same_run(config: RunConfig, job: slurm.Job) -> None:
    """A job that waits or runs reads run.yaml whenever it starts (again): that must not change under it."""
    run_yaml = Path(config.run_dir) / RUN_CONFIG_FILE
    if config.fresh or read_run_config(run_yaml) != dataclasses.replace(config, fresh=False):
        raise UserError(
            f"run_dir={config.run_dir}: job {job.id} ({job.state.lower()}) has this run_dir with other options; "
            f"end it with `loopcoder stop {config.run_dir}`, or give another run_dir"
        )
