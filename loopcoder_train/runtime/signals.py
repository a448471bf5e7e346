"""Requests to stop, as they reach a worker: signals become a request that the training loop looks at between steps.

The signals are blocked in every thread and taken by one thread of their own (`sigwaitinfo`). So a request is noticed,
and a second one ends the process at once, also while the main thread waits inside a collective, where a Python signal
handler would not run; and a request tells who sent it. No library code is ever interrupted.
"""

import os
import signal
import sys
import threading
import time
from enum import IntEnum

from loopcoder_train.config.process import (
    EXIT_REQUEUE,
    STOP_SIGNALS,
    is_second,
    original_of,
    passed_on,
    signal_exit_code,
)


class StopCause(IntEnum):
    """Why a run is asked to stop. Where causes meet, the largest counts: a person's word over a clock's."""

    time_limit = 1
    usr2 = 2
    term = 3
    hangup = 4
    interrupt = 5

    @property
    def text(self) -> str:
        """For people."""
        return "time limit" if self is StopCause.time_limit else _SIGNAL_OF[self].name

    @property
    def exit_code(self) -> int:
        """Of a process that stopped for this cause."""
        return EXIT_REQUEUE if self is StopCause.time_limit else signal_exit_code(_SIGNAL_OF[self])


_SIGNAL_OF = {
    StopCause.usr2: signal.SIGUSR2,
    StopCause.term: signal.SIGTERM,
    StopCause.hangup: signal.SIGHUP,
    StopCause.interrupt: signal.SIGINT,
}
_CAUSE_OF = {number: cause for cause, number in _SIGNAL_OF.items()}


class StopRequests:
    """What this process was asked. `cause` is None until it is asked to stop.

    name: how this process calls itself on stderr. launcher_pid: of the process that started it, when that is our
    launcher, which does not pass SIGTERM on as SIGTERM; from it, that signal means the end.
    """

    def __init__(self, *, name: str = "worker", launcher_pid: int | None = None) -> None:
        self.started = time.time()  # Unix seconds
        self._name, self._launcher_pid = name, launcher_pid
        self._cause: StopCause | None = None
        self._asked_at = 0.0
        self._former: dict[bool, int] = {}  # passed on or not -> the last signal
        self._finished = False
        self._lock = threading.Lock()

    @property
    def cause(self) -> StopCause | None:
        """Why this process shall stop."""
        return self._cause

    @property
    def seconds_waiting(self) -> float:
        """Since the first request; 0 without one."""
        return time.monotonic() - self._asked_at if self._cause else 0.0

    def ask(self, cause: StopCause) -> None:
        """Request a stop."""
        with self._lock:
            if self._cause is None:
                self._asked_at = time.monotonic()
            self._cause = max(cause, self._cause or cause)

    def listen(self) -> None:
        """Take the stop signals from now on. Call it once, in the main thread, before any other thread exists.

        An ignored SIGHUP or SIGINT stays so: that is what nohup and a shell's `&` are for.
        """
        wanted = {number for number in STOP_SIGNALS if not _ignored_on_purpose(number)}
        taken = wanted | {passed_on(number) for number in STOP_SIGNALS}
        signal.pthread_sigmask(signal.SIG_BLOCK, taken)
        os.register_at_fork(after_in_child=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, taken))
        threading.Thread(target=self._take, args=(taken,), name="stop-signals", daemon=True).start()

    def finish(self) -> None:
        """Everything is saved and this process is about to end: signals change nothing any more."""
        self._finished = True

    def _take(self, taken: set[int]) -> None:
        while True:
            information = signal.sigwaitinfo(taken)
            if not self._finished:
                self._receive(information.si_signo, information.si_pid)

    def _receive(self, number: int, sender: int) -> None:
        original = original_of(number)
        if number == signal.SIGTERM and sender == self._launcher_pid:
            _die_of(number)
        number = original or number
        former = self._former.get(original is not None)
        self._former[original is not None] = number
        text = signal.Signals(number).name
        if is_second(former, number):
            self._say(f"{text}: a second request; stopping at once, without saving")
            os._exit(128 + number)
        if self._cause is None:
            self._say(f"{text}: will save and stop at the end of this step")
        self.ask(_CAUSE_OF[number])

    def _say(self, text: str) -> None:
        sys.stderr.write(f"{self._name} (process {os.getpid()}): {text}\n")
        sys.stderr.flush()


def _ignored_on_purpose(number: int) -> bool:
    return number in (signal.SIGHUP, signal.SIGINT) and signal.getsignal(number) is signal.SIG_IGN


def _die_of(number: int) -> None:
    """End as if nobody had listened. What this process was doing is lost already: a partner has failed."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    os.kill(os.getpid(), number)
    os._exit(128 + number)  # it was ignored when this process started
