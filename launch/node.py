"""One node of a SLURM job: `python -m launch.node --config RUN.YAML --processes N --endpoint ADDRESS:PORT`, under srun.

torchrun's agent in this process, exactly as on a single machine (`launch/local.py`); this module only reads from the
environment which node it is.
"""

import argparse
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from loopcoder_train.config.errors import UserError
from loopcoder_train.config.io import read_run_config
from loopcoder_train.config.process import EXIT_REQUEUE, EXIT_USER_ERROR, STOP_SIGNALS, signal_exit_code

NODES = "LOOPCODER_NODES"  # environment variable: lines NAME=ADDRESS, written by the batch script


def main(arguments: Sequence[str] | None = None) -> int:
    """Run this node's workers; returns the exit code of the run."""
    parser = argparse.ArgumentParser(prog="python -m launch.node", description="one node of a SLURM job")
    parser.add_argument("--config", required=True, type=Path, metavar="RUN.YAML", help="of the run")
    parser.add_argument("--processes", required=True, type=int, metavar="N", help="workers to start here")
    parser.add_argument("--endpoint", required=True, metavar="ADDRESS:PORT", help="where the launchers meet")
    options = parser.parse_args(arguments)
    # A request that comes while torch is imported waits for StopSignals, which unblocks them.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    from launch.local import Node, run_workers  # imports torch

    try:
        config = read_run_config(options.config)
    except UserError as error:
        print(f"loopcoder: error: {error}", file=sys.stderr, flush=True)
        return EXIT_USER_ERROR
    code = run_workers(
        options.config,
        options.processes,
        config.launch.max_restarts,
        options.config.parent / "logs",
        threads_per_worker=config.training.num_threads,
        node=Node(endpoint=options.endpoint, **place(os.environ)),
    )
    # SLURM ends a job with SIGTERM when it needs the nodes: the run shall come back.
    return EXIT_REQUEUE if code == signal_exit_code(signal.SIGTERM) else code


def place(environment: Mapping[str, str]) -> dict[str, object]:
    """Which node of which job this is, as the arguments of `Node`. KeyError outside of a job of our batch script."""
    addresses = dict(line.split("=", 1) for line in environment[NODES].splitlines())
    restarts = int(environment.get("SLURM_RESTART_COUNT", "0"))
    job = f"job-{environment['SLURM_JOB_ID']}"
    return {
        "count": int(environment["SLURM_JOB_NUM_NODES"]),
        "address": addresses[environment["SLURMD_NODENAME"]],
        "is_host": environment["SLURM_NODEID"] == "0",
        "job": f"{job}-requeue-{restarts}" if restarts else job,
    }


if __name__ == "__main__":
    sys.exit(main())
