"""How long this rank computed, on a device that may run behind the program."""

import time

import torch


class Stopwatch:
    """Between `start` and `stop`, on CUDA in the stream's own time. One measurement at a time.

    `seconds` waits for CUDA to have come to `stop`; read it where the program waits anyway.
    """

    def __init__(self, device: torch.device) -> None:
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if device.type == "cuda" else None
        self._times = [0.0, 0.0]

    def start(self) -> None:
        """From here."""
        self._mark(0)

    def stop(self) -> None:
        """To here."""
        self._mark(1)

    @property
    def seconds(self) -> float:
        """Of the last measurement."""
        if self._events is None:
            return self._times[1] - self._times[0]
        self._events[1].synchronize()
        return self._events[0].elapsed_time(self._events[1]) / 1e3

    def _mark(self, place: int) -> None:
        if self._events is None:
            self._times[place] = time.perf_counter()
        else:
            self._events[place].record()
