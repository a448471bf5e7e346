"""How a run is doing, from its folder: run.yaml, the end of metrics.jsonl, its locks, its logs; and SLURM's queue."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.slurm import Job, job_name
from loopcoder_train.cli.submit import LAUNCHER_LOCK
from loopcoder_train.config.errors import UserError
from loopcoder_train.config.io import RUN_CONFIG_FILE, read_run_config
from loopcoder_train.runtime.lock import Holder, holder_of
from loopcoder_train.training.accounts import EFFECTIVE
from loopcoder_train.training.metrics import METRICS_FILE, Record, newest_records

WITHOUT_A_WORD = "ended without a word: killed, or its machine went down"


@dataclass(frozen=True, slots=True)
class RunState:
    """One run. `step` and the numbers are those of the last step written."""

    run_dir: str
    state: str  # queued, running, stopped, finished, failed, new (never started) or unreadable
    step: int
    num_steps: int
    loss: float | None
    tokens_per_second: float | None
    where: str  # host:process or SLURM job; empty when it is nowhere
    reason: str  # how it ended, or why it waits
    effective_training_share: float | None = None  # of all time since its first start (training/accounts.py)


def find_runs(folder: Path) -> list[Path]:
    """The run folders below `folder`, and itself when it is one, by name. Raises UserError when it is no folder."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the folder of a run, or one above it")
    return sorted(_find(folder))


def _find(folder: Path) -> Iterator[Path]:
    for directory, subfolders, files in os.walk(folder):
        if RUN_CONFIG_FILE in files:
            subfolders.clear()  # checkpoints and logs: nothing to look for, and many of them
            yield Path(directory)


def state_of(run_dir: Path, queue: Sequence[Job] = ()) -> RunState:
    """How the run in `run_dir` is doing. `queue`: SLURM's, as far as it is known."""
    try:
        num_steps = read_run_config(run_dir / RUN_CONFIG_FILE).training.num_steps
    except UserError as error:
        return RunState(str(run_dir), "unreadable", 0, 0, None, None, "", str(error))
    records = list(newest_records(run_dir / METRICS_FILE))
    trained = next((record for record in records if record["kind"] == "train"), {})
    latest = next((record for record in records if _says_where_it_stands(record)), {})
    step = int(latest.get("step", 0))
    own = [job for job in queue if job.name == job_name(run_dir)]
    job = min(own, key=lambda job: not job.is_running, default=None)
    holder = holder_of(run_dir) or holder_of(run_dir, LAUNCHER_LOCK)
    state, where, reason = _situation(run_dir, records, job, holder, done=step >= num_steps)
    numbers = trained.get("loss"), trained.get("tokens_per_second")
    return RunState(str(run_dir), state, step, num_steps, *numbers, where, reason, trained.get(EFFECTIVE))


def _says_where_it_stands(record: Record) -> bool:
    return record["kind"] == "train" or record.get("event") in ("started", "resumed", "stopped")


def _situation(
    run_dir: Path, records: list[Record], job: Job | None, holder: Holder | None, *, done: bool
) -> tuple[str, str, str]:
    """State, where and reason."""
    if job is not None and job.is_running:
        return "running", f"job {job.id} on {job.nodes}", ""
    if holder is not None:
        return "running", f"{holder.host}:{holder.pid}", ""
    if job is not None:
        return "queued", f"job {job.id}", job.reason
    event = next((record for record in records if record.get("event") in ("started", "resumed", "stopped")), None)
    error = _newest_error(run_dir)
    if event is not None and event["event"] == "stopped" and error is None:
        kept = _last_saved(records)
        if kept < event["step"]:  # told before the last save
            return "failed", "", f"killed while it saved; the last good checkpoint is that of step {kept}"
        return "finished" if done else "stopped", "", str(event["message"])
    if event is None and error is None:
        return "new", "", ""
    return "failed", "", error or WITHOUT_A_WORD


def _last_saved(records: list[Record]) -> int:
    """The newest step that a checkpoint has, as far as the records go back; 0 for none."""
    events = (record for record in records if record.get("event") in ("saved", "resumed"))
    return max((int(event.get("checkpoint_step", event["step"])) for event in events), default=0)


def _newest_error(run_dir: Path) -> str | None:
    """What the first failing worker of the newest attempt recorded; None when none did."""
    attempts = [path for path in (run_dir / "logs").glob("*") if path.is_dir()]
    if not attempts:
        return None
    newest = max(attempts, key=lambda path: path.stat().st_mtime)
    errors = []
    for file in newest.glob("rank-*.error.json"):
        try:
            message = json.loads(file.read_bytes())["message"]
            details = message["extraInfo"]
            errors.append((not details["user_error"], float(details["time"]), str(message["message"])))
        except (OSError, ValueError, KeyError, TypeError):  # killed while writing it
            continue
    return min(errors)[2] if errors else None
