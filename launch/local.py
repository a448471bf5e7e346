"""Start the workers of a run on this machine with torchrun's agent, in this process.

torchrun's agent assigns ranks, offers the rendezvous and stops all workers when one ends. What it cannot do is done
here: an error of the user (exit code 2) is never restarted, a request to stop goes to the workers and is waited for,
and what a person reads is one line instead of a page. Rank 0 writes to this process's stdout; everything else goes to
`<log_dir>/attempt-N/`, or to the job's folder on the nodes of a cluster.
"""

import itertools
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
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous.api import RendezvousError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from launch.failures import Failure, error_file, first_failure, stderr_file, stop_code
from launch.stop_signals import StopSignals
from loopcoder_train.config.process import (
    EXIT_FAILURE,
    EXIT_REQUEUE,
    EXIT_USER_ERROR,
    LAUNCHER_BEGAN,
    LAUNCHER_PID,
    process_began,
    signal_exit_code,
)

# The one signal that is torchrun's agent's: it ends the workers, saved or not. Where it is ignored it stays so.
_AGENT_SIGNAL = "SIGQUIT"
_AGENT_LOGGER = "torch.distributed.elastic"

_idle_since: float | None = None  # time.monotonic() when the last attempt of this process ended; None before the first


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """This machine's part in a job of several launchers, one per machine."""

    count: int
    address: str  # of this machine, as the others reach it; no name is looked up
    endpoint: str  # address:port where the launchers meet
    is_host: bool  # whether this launcher offers the endpoint
    job: str  # the same name on all machines, another for every start: of the rendezvous and of the folder of logs


def run_workers(
    run_yaml: Path,
    nproc: int,
    max_restarts: int,
    log_dir: Path,
    *,
    threads_per_worker: int | None = None,
    progress: Callable[[float], str] | None = None,
    module: str = "loopcoder_train.worker",
    node: Node | None = None,
) -> int:
    """Run `python -m <module> --config <run_yaml>` in `nproc` processes; returns the exit code for the user.

    0: all workers ended well. 2: a worker reported a user's error; it was printed, and nothing is restarted. 1: a
    worker failed `max_restarts + 1` times. 75: the run saved and stopped because its time was up. 128 + N: this process
    or a worker got stop signal N, and the run saved and stopped, or was ended by a second signal.

    `progress(since)` says how far an attempt came that began at `since` (Unix seconds): "after step 12 of 40".
    """
    threads = threads_per_worker or max(1, len(os.sched_getaffinity(0)) // nproc)
    arguments = ["-u", "-m", module, "--config", str(run_yaml)]
    with StopSignals(arguments) as stop:
        for failures_so_far in itertools.count():
            attempt_dir = _new_attempt_dir(log_dir) if node is None else _folder_of_job(log_dir, node, failures_so_far)
            began = time.time()
            try:
                with _process_state(attempt_dir, threads):
                    _run_once(arguments, nproc, attempt_dir, node)
                return 0
            except SignalException as end:
                return _stopped(signal_exit_code(stop.number or end.sigval))
            except ChildFailedError as error:
                code = stop_code(error.failures, stop.number)
                if code is not None:
                    return _stopped(code)
                failure = first_failure(error.failures, attempt_dir)
            except RendezvousError as error:
                if stop.number is not None:
                    return _stopped(signal_exit_code(stop.number))
                failure = _no_rendezvous(error, attempt_dir)
            restarts = 0 if failure.user_error or stop.number is not None else max_restarts
            where = f", {progress(began)}" if progress else ""
            if failures_so_far >= restarts:
                return _failed(failure, where)
            _failed(failure, where, again=f"; restart {failures_so_far + 1} of {max_restarts}")
    raise AssertionError("unreachable")


def _run_once(arguments: list[str], nproc: int, attempt_dir: Path, node: Node | None) -> None:
    if node is None:
        where = {"run_id": f"{attempt_dir.name}-{os.getpid()}", "rdzv_endpoint": "localhost:0"}
        where["local_addr"] = "localhost"  # this machine's name need not resolve
    else:
        # Whether the endpoint is here is known; torchrun would guess it from names, which need not resolve.
        host = {"is_host": "1" if node.is_host else "0"}
        where = {"run_id": attempt_dir.name, "rdzv_endpoint": node.endpoint, "local_addr": node.address}
        where["rdzv_configs"] = host
    nodes = 1 if node is None else node.count
    config = LaunchConfig(
        min_nodes=nodes,
        max_nodes=nodes,
        nproc_per_node=nproc,
        rdzv_backend="c10d",
        max_restarts=0,  # torchrun would restart a user's error too
        logs_specs=AttemptLogs(attempt_dir),
        signals_to_handle="" if signal.getsignal(signal.SIGQUIT) is signal.SIG_IGN else _AGENT_SIGNAL,
        **where,
    )
    elastic_launch(config, sys.executable)(*arguments)


def _stopped(code: int) -> int:
    if code == EXIT_REQUEUE:
        text = f"time was up; the run saved and stopped, start it again to go on (exit code {code})"
    else:
        text = f"stopped by {signal.Signals(code - 128).name}"
    print(f"loopcoder: {text}", file=sys.stderr, flush=True)
    return code


def _failed(failure: Failure, where: str, again: str = "") -> int:
    where = "" if failure.user_error else f"{where}; log: {failure.log}"
    print(f"loopcoder: error: {failure.message}{where}{again}", file=sys.stderr, flush=True)
    return EXIT_USER_ERROR if failure.user_error else EXIT_FAILURE


def _no_rendezvous(error: RendezvousError, attempt_dir: Path) -> Failure:
    cause = error.__cause__ or error
    text = " ".join(str(cause).split())[:200]
    message = f"the launchers of this job do not reach each other ({type(error).__name__}: {text})"
    return Failure(message, _agent_log(attempt_dir), user_error=False)


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


def _folder_of_job(log_dir: Path, node: Node, failures_so_far: int) -> Path:
    """The same folder on every node, whoever is first."""
    folder = log_dir / (f"{node.job}-again-{failures_so_far}" if failures_so_far else node.job)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class AttemptLogs(LogsSpecs):
    """Rank 0's stdout stays this process's own (a terminal stays one); all else goes to files of the attempt."""

    def __init__(self, attempt_dir: Path) -> None:
        super().__init__(log_dir=str(attempt_dir))
        self._attempt_dir = attempt_dir

    @property
    def root_log_dir(self) -> str:
        return str(self._attempt_dir)

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        """Destinations by local rank, in files named by rank; tells each worker where to record its error."""
        logs = LogsDest()
        for local_rank, environment in envs.items():
            rank = int(environment["RANK"])
            logs.stdouts[local_rank] = "" if rank == 0 else str(self._attempt_dir / f"rank-{rank}.stdout")
            logs.stderrs[local_rank] = str(stderr_file(self._attempt_dir, rank))
            logs.error_files[local_rank] = str(error_file(self._attempt_dir, rank))
            environment["TORCHELASTIC_ERROR_FILE"] = logs.error_files[local_rank]
        return logs


def _agent_log(attempt_dir: Path) -> Path:
    """The agent's own log; every node of a job has one."""
    name = os.environ.get("SLURMD_NODENAME")
    return attempt_dir / (f"torchrun-{name}.log" if name else "torchrun.log")


@contextmanager
def _process_state(attempt_dir: Path, threads: int) -> Iterator[None]:
    """What workers inherit and torchrun's agent changes in this process, undone afterwards: a sweep runs many.

    Workers get their number of threads (unless the user set it), this process's id and when it began with them; the
    agent's own log goes to a file; the signal handler that it installs is taken out again.
    """
    global _idle_since
    began = process_began() if _idle_since is None else _idle_since  # what the launcher does before is part of a start
    variables = {LAUNCHER_PID: str(os.getpid()), LAUNCHER_BEGAN: repr(began)}
    if "OMP_NUM_THREADS" not in os.environ:
        variables["OMP_NUM_THREADS"] = str(threads)
    before = {name: os.environ.get(name) for name in (*variables, "TORCHELASTIC_SIGNALS_TO_HANDLE")}
    in_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(getattr(signal, _AGENT_SIGNAL))
    agent_log = logging.FileHandler(_agent_log(attempt_dir), encoding="utf-8")
    logger = logging.getLogger(_AGENT_LOGGER)
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(agent_log)
    os.environ.update(variables)
    try:
        yield
    finally:
        _idle_since = time.monotonic()
        logger.removeHandler(agent_log)
        logger.propagate = propagate
        agent_log.close()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        if in_main_thread:
            signal.signal(getattr(signal, _AGENT_SIGNAL), handler)
