"""End this process when its launcher is gone.

Under torchrun every worker has its own session, so nothing stops the workers of a launcher that was killed: they would
go on training, and writing, beside the next attempt.
"""

import os
import sys
import threading

POLL_SECONDS = 1.0  # ends the process well within 5 s


def watch_parent(parent_pid: int | None = None, *, name: str = "worker") -> None:
    """Start a daemon thread that ends this process with code 1 when its parent is no longer `parent_pid`.

    parent_pid: the launcher's, so that one which died before this call is noticed too; default: the parent now.
    """
    expected = os.getppid() if parent_pid is None else parent_pid
    threading.Thread(target=_watch, args=(expected, name), name="parent-watch", daemon=True).start()


def _watch(expected: int, name: str) -> None:
    waiting = threading.Event()
    while os.getppid() == expected:  # an orphan gets another parent at once
        waiting.wait(POLL_SECONDS)
    # Not sys.exit: other threads may hang in a collective whose partners are gone.
    sys.stderr.write(f"{name} (process {os.getpid()}): the launcher (process {expected}) is gone; stopping\n")
    sys.stderr.flush()
    os._exit(1)
