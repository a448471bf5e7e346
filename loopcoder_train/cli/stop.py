"""`loopcoder stop RUN`: ask a run to save and stop, wait for it, say what became of it."""

import json
import os
import signal
import socket
import time
from dataclasses import asdict
from pathlib import Path

from launch import slurm
from loopcoder_train.cli import hydra_app
from loopcoder_train.cli.arguments import parse
from loopcoder_train.cli.run_state import RunState, state_of
from loopcoder_train.cli.submit import LAUNCHER_LOCK
from loopcoder_train.config.commands import StopOptions
from loopcoder_train.config.errors import UserError, require
from loopcoder_train.config.io import RUN_CONFIG_FILE
from loopcoder_train.config.process import EXIT_FAILURE
from loopcoder_train.runtime.lock import Holder, holder_of

POLL_SECONDS = 0.5


def run(arguments: list[str]) -> int:
    """Parse, compose, stop."""
    command = hydra_app.Command(name="stop", config_name="stop", schema=StopOptions, execute=_execute)
    return hydra_app.run(command, parse(arguments, positional="run_dir", paths=("run_dir",)))


def _execute(options: StopOptions) -> int:
    run_dir = Path(options.run_dir)
    exists = (run_dir / RUN_CONFIG_FILE).is_file()
    require(exists, "run_dir", run_dir, "holds no run", "`loopcoder runs` lists those there are")
    asked = _ask(run_dir)
    ended = _wait(run_dir, options.wait_seconds)
    state = state_of(run_dir, slurm.queue() if slurm.was_submitted(run_dir) else [])
    if options.json:
        print(json.dumps(asdict(state)))
    else:
        print(_report(state, asked, ended, options.wait_seconds))
    return 0 if ended and (state.state != "failed" or not asked) else EXIT_FAILURE


def _ask(run_dir: Path) -> list[str]:
    """Ask whoever has the run, or is to have it, to stop; what was done, for people."""
    jobs = slurm.jobs_of(run_dir) if slurm.was_submitted(run_dir) else []
    holder = holder_of(run_dir)
    done = []
    for job in jobs:
        if job.is_running and holder is not None:
            # Not SIGTERM: after that, which SLURM itself sends when it needs the nodes, the job would be requeued.
            slurm.signal_job(job.id, "INT")
            done.append(f"asked job {job.id}")
        else:  # nothing of it has begun, so nothing is lost; a signal might meet a process that does not listen yet
            slurm.cancel(job.id)
            done.append(f"cancelled job {job.id}, which had not begun")
    holder = holder or holder_of(run_dir, LAUNCHER_LOCK)
    if not jobs and holder is not None:
        _signal(run_dir, holder)
        done.append(f"asked process {holder.pid}")
    return done


def _signal(run_dir: Path, holder: Holder) -> None:
    here = socket.gethostname()
    if holder.host != here:
        raise UserError(f"run_dir={run_dir}: is run by {holder}, this is {here}; give the command there")
    try:
        os.kill(holder.pid, signal.SIGTERM)
    except ProcessLookupError:
        return  # it ended by itself a moment ago
    except PermissionError as error:
        raise UserError(f"run_dir={run_dir}: {holder} belongs to another user; ask them to stop it") from error


def _wait(run_dir: Path, seconds: float) -> bool:
    """Wait until nobody has the run; whether that came true in time."""
    deadline = time.monotonic() + seconds
    while True:
        holders = holder_of(run_dir), holder_of(run_dir, LAUNCHER_LOCK)
        if not any(holders) and not (slurm.was_submitted(run_dir) and slurm.jobs_of(run_dir)):
            return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_SECONDS)


def _report(state: RunState, asked: list[str], ended: bool, seconds: float) -> str:
    step = f"step {state.step} of {state.num_steps}"
    if not ended:
        late = f"still running after {seconds:.0f} s, at {step}; it stops all the same"
        return f"{state.run_dir}: {', '.join(asked)}; {late}"
    if not asked:
        return f"{state.run_dir}: is not running; {state.state}, {step}"
    reason = f" ({state.reason})" if state.reason else ""
    return f"{state.run_dir}: {', '.join(asked)}; {state.state}{reason}, {step}"
