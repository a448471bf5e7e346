"""Which of the failed workers of an attempt is the cause, or whether they only did what they were asked to: stop."""

import json
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from loopcoder_train.config.process import EXIT_REQUEUE, FAILURE_RECORD, STOP_SIGNALS, passed_on, signal_exit_code

_TAIL_BYTES = 200_000
_STOP_CODES = {EXIT_REQUEUE, *(signal_exit_code(number) for number in STOP_SIGNALS)}
# How a worker ends that got a stop signal before it listened, or that torchrun's agent ended after its partners.
_STOP_DEATHS = {-number for number in STOP_SIGNALS} | {-passed_on(number) for number in STOP_SIGNALS}


@dataclass(slots=True)
class Failure:
    """The failure that explains the others."""

    message: str
    log: Path
    user_error: bool


def stop_code(failures: Mapping[int, ProcessFailure], asked: int | None) -> int | None:
    """The exit code of a run whose workers stopped because they were asked to; None when one of them failed.

    failures: by rank. asked: the stop signal that the launcher passed on, if any; workers may have got one themselves,
    or have run out of time.
    """
    codes = {failure.exitcode for failure in failures.values()}
    stopped = codes & _STOP_CODES
    if codes - _STOP_CODES - _STOP_DEATHS or not (stopped or asked):
        return None
    return max(stopped) if asked is None else signal_exit_code(asked)


def stderr_file(attempt_dir: Path, rank: int) -> Path:
    """Where a worker's stderr goes."""
    return attempt_dir / f"rank-{rank}.stderr"


def error_file(attempt_dir: Path, rank: int) -> Path:
    """Where a worker records the error that ended it."""
    return attempt_dir / f"rank-{rank}.error.json"


def first_failure(failures: Mapping[int, ProcessFailure], attempt_dir: Path) -> Failure:
    """Which of the failed workers is the cause: when one dies, the others lose it and fail too, or are stopped.

    failures: by rank. A user's error explains everything; then a hang, since whoever did not answer is killed at its
    end; then a death by a signal that is not the agent's own SIGTERM; then the error recorded first.
    """

    def order(rank: int) -> tuple[bool, bool, bool, bool, float, int]:
        record, code = read_record(attempt_dir, rank), failures[rank].exitcode
        died = code < 0 and code != -signal.SIGTERM
        stopped = code == -signal.SIGTERM and not record
        hang = bool(record.get("hang"))
        return not record.get("user_error"), not hang, not died, stopped, record.get("time", float("inf")), rank

    rank = min(failures, key=order)
    record, code = read_record(attempt_dir, rank), failures[rank].exitcode
    log = stderr_file(attempt_dir, rank)
    if record.get("user_error"):
        return Failure(str(record["message"]), log, user_error=True)
    died = code < 0 and not record  # with a record it failed by itself and was stopped while it closed
    reason = f"was killed by {failures[rank].signal_name()}" if died else f"failed with exit code {abs(code)}"
    what = record.get("message") or _last_line(log)
    return Failure(f"rank {rank} {reason}" + (f" ({what})" if what else ""), log, user_error=False)


def read_record(attempt_dir: Path, rank: int) -> dict[str, object]:
    """message, time and user_error of a worker's error file, or of its stderr's line of that kind; empty without."""
    file = error_file(attempt_dir, rank)
    try:
        content = json.loads(file.read_bytes() if file.exists() else _recorded_in_stderr(attempt_dir, rank))
        return {"message": content["message"]["message"], **content["message"]["extraInfo"]}
    except (OSError, ValueError, KeyError, TypeError):  # none, or killed while writing it
        return {}


def _recorded_in_stderr(attempt_dir: Path, rank: int) -> str:
    lines = (line for line in _tail(stderr_file(attempt_dir, rank)) if line.startswith(FAILURE_RECORD))
    return next(lines, "").removeprefix(FAILURE_RECORD)


def _tail(log: Path) -> list[str]:
    try:
        return log.read_bytes()[-_TAIL_BYTES:].decode("utf-8", errors="replace").split("\n")
    except OSError:
        return []


def _last_line(log: Path) -> str:
    return next((" ".join(line.split()) for line in reversed(_tail(log)) if line.strip()), "")
