"""Start the workers of a run on this machine with torchrun's agent, in this process.

torchrun's agent assigns ranks, offers the rendezvous and stops all workers when one ends. What it cannot do is done
here: an error of the user (exit code 2) is never restarted, and what a person reads is one line instead of a page.
Rank 0 writes to this process's stdout; everything else goes to `<log_dir>/attempt-N/`.
"""

import itertools
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch.distributed.elastic.multiprocessing import LogsDest, LogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

EXIT_FAILURE = 1
EXIT_USER_ERROR = 2
SIGNALS = ("SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP")
_AGENT_LOGGER = "torch.distributed.elastic"
_TAIL_BYTES = 20_000


def run_workers(
    run_yaml: Path,
    nproc: int,
    max_restarts: int,
    log_dir: Path,
    *,
    threads_per_worker: int | None = None,
    progress: Callable[[float], str] | None = None,
    module: str = "loopcoder_train.worker",
) -> int:
    """Run `python -m <module> --config <run_yaml>` in `nproc` processes; returns the exit code for the user.

    0: all workers ended well. 2: a worker reported a user's error; it was printed, and nothing is restarted. 1: a
    worker failed `max_restarts + 1` times. 128 + N: this process got signal N and stopped the workers.

    `progress(since)` says how far an attempt came that began at `since` (Unix seconds): "after step 12 of 40".
    """
    threads = threads_per_worker or max(1, len(os.sched_getaffinity(0)) // nproc)
    for failures_so_far in itertools.count():
        attempt_dir, began = _new_attempt_dir(log_dir), time.time()
        try:
            with _process_state(attempt_dir, threads):
                _run_once(run_yaml, nproc, attempt_dir, module)
            return 0
        except SignalException as stop:
            print(f"loopcoder: stopped by {stop.sigval.name}", file=sys.stderr, flush=True)
            return 128 + int(stop.sigval)
        except ChildFailedError as error:
            failure = first_failure(error.failures, attempt_dir)
        if failure.user_error:
            print(f"loopcoder: error: {failure.message}", file=sys.stderr, flush=True)
            return EXIT_USER_ERROR
        restart = failures_so_far < max_restarts
        again = f"; restart {failures_so_far + 1} of {max_restarts}" if restart else ""
        where = f", {progress(began)}" if progress else ""
        print(f"loopcoder: error: {failure.message}{where}; log: {failure.log}{again}", file=sys.stderr, flush=True)
        if not restart:
            return EXIT_FAILURE
    raise AssertionError("unreachable")


def _run_once(run_yaml: Path, nproc: int, attempt_dir: Path, module: str) -> None:
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=nproc,
        run_id=f"{attempt_dir.name}-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",  # this machine's name need not resolve
        max_restarts=0,  # torchrun would restart a user's error too
        logs_specs=AttemptLogs(attempt_dir),
        signals_to_handle=",".join(_signals_to_handle()),
    )
    elastic_launch(config, sys.executable)("-u", "-m", module, "--config", str(run_yaml))


def _signals_to_handle() -> list[str]:
    # A signal that is ignored (SIGHUP under nohup) must stay so.
    return [name for name in SIGNALS if signal.getsignal(getattr(signal, name)) is not signal.SIG_IGN]


def _new_attempt_dir(log_dir: Path) -> Path:
    log_dir.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        attempt_dir = log_dir / f"attempt-{number}"
        try:
            attempt_dir.mkdir()
        except FileExistsError:
            continue
        return attempt_dir
    raise AssertionError("unreachable")


class AttemptLogs(LogsSpecs):
    """Rank 0's stdout stays this process's own (a terminal stays one); all else goes to files of the attempt."""

    def __init__(self, attempt_dir: Path) -> None:
        super().__init__(log_dir=str(attempt_dir))
        self._attempt_dir = attempt_dir

    @property
    def root_log_dir(self) -> str:
        return str(self._attempt_dir)

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        """Destinations by local rank; tells each worker where to record its error."""
        logs = LogsDest()
        for rank, environment in envs.items():
            logs.stdouts[rank] = "" if rank == 0 else str(self._attempt_dir / f"rank-{rank}.stdout")
            logs.stderrs[rank] = str(stderr_file(self._attempt_dir, rank))
            logs.error_files[rank] = str(error_file(self._attempt_dir, rank))
            environment["TORCHELASTIC_ERROR_FILE"] = logs.error_files[rank]
        return logs


def stderr_file(attempt_dir: Path, rank: int) -> Path:
    """Where a worker's stderr goes."""
    return attempt_dir / f"rank-{rank}.stderr"


def error_file(attempt_dir: Path, rank: int) -> Path:
    """Where a worker records the error that ended it."""
    return attempt_dir / f"rank-{rank}.error.json"


@dataclass(slots=True)
class Failure:
    """The failure that explains the others."""

    message: str
    log: Path
    user_error: bool


def first_failure(failures: dict[int, ProcessFailure], attempt_dir: Path) -> Failure:
    """Which of the failed workers is the cause: when one dies, the others lose it and fail too, or are stopped.

    A user's error explains everything; then a death by a signal that is not the agent's own SIGTERM; then the error
    recorded first.
    """

    def order(rank: int) -> tuple[bool, bool, bool, float, int]:
        record, code = _read_record(attempt_dir, rank), failures[rank].exitcode
        died = code < 0 and code != -signal.SIGTERM
        stopped = code == -signal.SIGTERM and not record
        return not record.get("user_error"), not died, stopped, record.get("time", float("inf")), rank

    rank = min(failures, key=order)
    record, code = _read_record(attempt_dir, rank), failures[rank].exitcode
    log = stderr_file(attempt_dir, rank)
    if record.get("user_error"):
        return Failure(str(record["message"]), log, user_error=True)
    died = code < 0 and not record  # with a record it failed by itself and was stopped while it closed
    reason = f"was killed by {failures[rank].signal_name()}" if died else f"failed with exit code {abs(code)}"
    what = record.get("message") or _last_line(log)
    return Failure(f"rank {rank} {reason}" + (f" ({what})" if what else ""), log, user_error=False)


def _read_record(attempt_dir: Path, rank: int) -> dict[str, object]:
    """message, time and user_error of a worker's error file; empty when it left none."""
    try:
        content = json.loads(error_file(attempt_dir, rank).read_bytes())
        return {"message": content["message"]["message"], **content["message"]["extraInfo"]}
    except (OSError, ValueError, KeyError, TypeError):  # none, or killed while writing it
        return {}


def _last_line(log: Path) -> str:
    try:
        lines = log.read_bytes()[-_TAIL_BYTES:].decode("utf-8", errors="replace").split("\n")
    except OSError:
        return ""
    return next((" ".join(line.split()) for line in reversed(lines) if line.strip()), "")


@contextmanager
def _process_state(attempt_dir: Path, threads: int) -> Iterator[None]:
    """What workers inherit and torchrun's agent changes in this process, undone afterwards: a sweep runs many.

    Workers get their number of threads (unless the user set it) and this process's id; the agent's own log goes to a
    file; the signal handlers that it installs are taken out again.
    """
    variables = {"LOOPCODER_LAUNCHER_PID": str(os.getpid())}
    if "OMP_NUM_THREADS" not in os.environ:
        variables["OMP_NUM_THREADS"] = str(threads)
    before = {name: os.environ.get(name) for name in (*variables, "TORCHELASTIC_SIGNALS_TO_HANDLE")}
    in_main_thread = threading.current_thread() is threading.main_thread()
    handlers = {name: signal.getsignal(getattr(signal, name)) for name in SIGNALS}
    agent_log = logging.FileHandler(attempt_dir / "torchrun.log", encoding="utf-8")
    logger = logging.getLogger(_AGENT_LOGGER)
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(agent_log)
    os.environ.update(variables)
    try:
        yield
    finally:
        logger.removeHandler(agent_log)
        logger.propagate = propagate
        agent_log.close()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        if in_main_thread:
            for name, handler in handlers.items():
                signal.signal(getattr(signal, name), handler)
