"""Stop signals to a launcher go to its workers, which save and stop; torchrun's agent never sees them.

The agent would end the workers itself, and kill them after 30 s, saved or not; of SIGUSR2 it would die.
"""

import os
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Self

import psutil
from torch.distributed.elastic.multiprocessing import SignalException

from loopcoder_train.config.process import STOP_SIGNALS, is_second, passed_on


class StopSignals:
    """`with StopSignals(arguments) as stop: ...`; `arguments` are those that the workers' command lines end with.

    The first signal is passed on, and `number` says which it was. A second one kills the workers, and raises torch's
    SignalException in the main thread; so does the first while there are no workers. Signals that are ignored (SIGHUP
    under nohup) stay so. Outside of the main thread, where Python has no signals, nothing is done.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        self.number: int | None = None
        self._arguments = list(arguments)
        self._former: int | None = None
        self._replaced: dict[int, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._replaced[number] = signal.signal(number, self._received)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._replaced.items():
            signal.signal(number, handler)

    def _received(self, number: int, frame: FrameType | None) -> None:
        former, self._former = self._former, number
        name = signal.Signals(number).name
        workers = self._workers()
        if is_second(former, number) or not workers:
            self.number = self.number or number
            for worker in workers:
                with suppress(ProcessLookupError):
                    os.kill(worker, signal.SIGKILL)
            raise SignalException(f"got {name}", sigval=signal.Signals(number))
        if former is not None:
            return  # announced before, now begun: the workers are at it
        self.number = number
        print(f"loopcoder: {name}: the run saves and stops; once more ends it at once", file=sys.stderr, flush=True)
        for worker in workers:
            with suppress(ProcessLookupError):
                os.kill(worker, passed_on(number))

    def _workers(self) -> list[int]:
        found = []
        for child in psutil.Process().children():
            with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                if child.cmdline()[-len(self._arguments) :] == self._arguments:
                    found.append(child.pid)
        return found
