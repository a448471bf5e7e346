"""The stages of a sweep on a SLURM cluster: training as jobs of its own, the rest by srun; this process only waits.

A training stage is submitted by its own command (`loopcoder pretrain launch=slurm`) unless its job is in the queue or
its last step is saved. So a sweep that was killed finds its jobs again, and the same command goes on.
"""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from launch import slurm
from loopcoder_train.config import LaunchConfig, UserError
from loopcoder_train.config.process import EXIT_FAILURE, signal_exit_code
from loopcoder_train.sweep.runner import STOP_CODES, Stopped, exit_code_of, is_trained, received_by
from loopcoder_train.sweep.stages import Stage

COMMAND = "loopcoder_train.cli.main"
POLL_SECONDS, COMMAND_POLL_SECONDS = 15.0, 0.5
MOST_QUESTIONS = 40  # ten minutes without an answer


class SlurmStages:
    """Runs the stages of many arms at once, each from a thread of its own.

    A stop signal ends the waiting and what srun runs; jobs go on, and the same sweep finds them again.
    `pause(seconds)` waits, and says whether to stop.
    """

    def __init__(self, launch: LaunchConfig, *, pause: Callable[[float], bool] | None = None) -> None:
        self._launch, self._stopped_by = launch, 0
        self._stop = threading.Event()
        self._pause = pause or self._stop.wait

    def listening(self) -> AbstractContextManager[None]:
        """Receive stop signals in place of the process."""
        return received_by(self._received)

    def _received(self, number: int, _frame: object) -> None:
        self._stopped_by = self._stopped_by or number
        self._stop.set()

    def run(self, stage: Stage, log: Path) -> int:
        """The exit code of the stage; waits as long as its job waits or runs.

        Raises Stopped when this process was told to stop. A stage that SLURM ended (scancel, a time limit, a lost
        node) has the exit code of a signal, too, and is this arm's failure: the others go on, and are reported.
        """
        if not stage.trains:
            line = slurm.srun_line(self._launch, stage.run_dir, COMMAND, stage.arguments)
            return self._command(line, log, self._launch.environment)
        if not slurm.jobs_of(stage.run_dir) and not is_trained(stage.run_dir):
            code = self._command([sys.executable, "-m", COMMAND, *stage.arguments], log, {})
            if code:
                return code
        while self._is_queued(stage.run_dir, log):
            if self._pause(POLL_SECONDS):
                raise Stopped(signal_exit_code(self._stopped_by))
        return 0 if is_trained(stage.run_dir) else EXIT_FAILURE

    def _is_queued(self, run_dir: Path, log: Path) -> bool:
        """Whether SLURM has a job of the run. Asked again when it does not answer: it is restarted at times."""
        for _ in range(MOST_QUESTIONS - 1):
            try:
                return bool(slurm.jobs_of(run_dir))
            except UserError as error:
                with log.open("a", encoding="utf-8") as output:
                    output.write(f"{error}; asking again\n")
            if self._pause(POLL_SECONDS):
                raise Stopped(signal_exit_code(self._stopped_by))
        return bool(slurm.jobs_of(run_dir))

    def _command(self, line: list[str], log: Path, variables: dict[str, str]) -> int:
        with log.open("ab") as output:
            process = subprocess.Popen(
                line, stdout=output, stderr=output, env=os.environ | variables, start_new_session=True
            )
            while process.poll() is None:
                if self._pause(COMMAND_POLL_SECONDS):
                    process.terminate()
                    process.wait()
                    raise Stopped(signal_exit_code(self._stopped_by))
        code = exit_code_of(process.returncode)
        if code in STOP_CODES and self._pause(COMMAND_POLL_SECONDS):  # one signal for both may reach it first
            raise Stopped(signal_exit_code(self._stopped_by))
        return code
