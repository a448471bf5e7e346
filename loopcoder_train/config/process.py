"""What processes of a run tell each other: exit codes and signals, for workers, launchers, commands and batch script.

docs/operations.md has each exit code with its remedy. 128 + N: stopped by signal N, of a person (Ctrl-C: 130) or the
system.
"""

import os
import signal
import time
from pathlib import Path

EXIT_FAILURE = 1  # a defect, a lost machine, a killed worker; the log says which
EXIT_USER_ERROR = 2  # one line says what to mend; starting again without that ends the same way
EXIT_REQUEUE = 75  # saved and stopped before it was done, because time was up: start it again (sysexits' EX_TEMPFAIL)
EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_BROKEN_PIPE = 128 + signal.SIGPIPE

LAUNCHER_PID = "LOOPCODER_LAUNCHER_PID"  # environment variable: the process that started a worker
FAILURE_RECORD = "failure record: "  # begins the line of stderr with a worker's record where no file could be written
LAUNCHER_BEGAN = "LOOPCODER_LAUNCHER_BEGAN"  # environment variable: when it began this attempt, as time.monotonic()
END_TIME = "SLURM_JOB_END_TIME"  # environment variable: when SLURM ends the job, in Unix seconds

# Each asks a run to save and stop. SIGUSR2 announces that time will be up: SLURM sends it ahead of a job's time limit.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2)


def process_began() -> float:
    """When the system started this process, on the clock of `time.monotonic`, to a hundredth of a second."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()  # the name before may hold blanks
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.monotonic() - age


def signal_exit_code(number: int) -> int:
    """The exit code of a run that stop signal `number` ended."""
    return EXIT_REQUEUE if number == signal.SIGUSR2 else 128 + number


def is_second(former: int | None, number: int) -> bool:
    """Whether stop signal `number` after `former` insists, so that nothing is waited for any more.

    A SIGTERM after SIGUSR2 does not: SLURM announces the end with the one and begins it with the other, and a save
    that the announcement started may still be finished in between.
    """
    return former is not None and (former, number) != (signal.SIGUSR2, signal.SIGTERM)


def passed_on(number: int) -> int:
    """The signal by which our launcher passes stop signal `number` on to its workers.

    Another one than the original, because a worker must tell three things apart: a request that only its launcher got,
    the same request sent to every process of a job (SLURM does that), and the SIGTERM by which torchrun's agent ends
    the workers when one of them failed.
    """
    return signal.SIGRTMIN + number


def original_of(number: int) -> int | None:
    """The stop signal that `number` passes on; None when it passes none on."""
    original = number - signal.SIGRTMIN
    return original if original in STOP_SIGNALS else None
