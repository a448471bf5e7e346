"""One process of a run: `python -m loopcoder_train.worker --config run.yaml`, started by the launcher or by torchrun.

A user's error (wrong option, damaged corpus, ...) ends it with one line on stderr and exit code 2; any other with a
traceback and exit code 1. Both are recorded in the file that torchrun names, so that the launcher can say what happened
first. A run that was asked to stop ends with the exit code of the cause. Nothing heavy is imported before the launcher
is watched and stop signals are taken: a start takes seconds, and either may happen at any time.
"""

import argparse
import faulthandler
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from loopcoder_train.config.errors import UserError
from loopcoder_train.config.io import read_run_config
from loopcoder_train.config.process import EXIT_USER_ERROR, LAUNCHER_PID
from loopcoder_train.config.run import RunConfig
from loopcoder_train.config.training import Device
from loopcoder_train.runtime.failure import USER_ERRORS, record_failure
from loopcoder_train.runtime.heartbeat import HEART
from loopcoder_train.runtime.parent_watch import watch_parent
from loopcoder_train.runtime.signals import StopRequests
from loopcoder_train.runtime.start_clock import StartClock


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as the configuration says; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m loopcoder_train.worker", description="one process of a run")
    parser.add_argument(
        "--config", required=True, type=Path, metavar="RUN.YAML", help="written by `loopcoder pretrain`"
    )
    options = parser.parse_args(arguments)
    requests = _prepare_process()
    HEART.clock = StartClock.of_this_process(os.environ)
    try:
        config = read_run_config(options.config)
        check_world_size(config, _environment_int("WORLD_SIZE"))
        _prepare_cuda(config)
        from loopcoder_train.build import pretrain  # imports torch and Megatron

        cause = pretrain(config, requests)
    except USER_ERRORS as error:
        record_failure(error)
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return EXIT_USER_ERROR
    return cause.exit_code if cause else 0


def check_world_size(config: RunConfig, started: int | None) -> None:
    """Raise UserError when not as many processes were started as the configuration lays the model over."""
    expected = config.parallel.world_size
    if (started or 1) != expected:
        raise UserError(
            f"parallel.world_size={expected}: {started or 1} process(es) were started; use `loopcoder pretrain`, or "
            f"torchrun --nproc-per-node {expected} -m loopcoder_train.worker --config ..."
        )


def _prepare_process() -> StopRequests:
    faulthandler.enable()  # the stack of a crash in native code goes to stderr
    sys.excepthook = _record_and_print
    name, launcher = f"rank {os.environ.get('RANK', '0')}", _environment_int(LAUNCHER_PID)
    requests = StopRequests(name=name, launcher_pid=launcher)
    requests.listen()  # before there is a second thread
    if "TORCHELASTIC_RUN_ID" in os.environ:  # without torchrun, outliving the shell is what nohup is for
        watch_parent(launcher, name=name)
    return requests


def _record_and_print(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        record_failure(error)
    sys.__excepthook__(kind, error, trace)


def _prepare_cuda(config: RunConfig) -> None:
    """What CUDA reads from the environment when torch is imported."""
    if config.training.device is Device.cpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Megatron allocates on any CUDA device that it finds
    if config.parallel.tensor_parallel_size > 1:
        # One hardware queue: Megatron's collectives start before the matrix products that hide them.
        os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")


def _environment_int(name: str) -> int | None:
    value = os.environ.get(name)
    return None if value is None else int(value)


if __name__ == "__main__":
    sys.exit(main())
