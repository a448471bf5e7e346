"""What a person sees while a run goes: one live line on a terminal, plain lines at growing intervals elsewhere."""

import io
import logging
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

Number = int | float

LIVE_INTERVAL_SECONDS = 0.1  # a terminal line is redrawn at most this often
PLAIN_FIRST_SECONDS = 5.0  # plain lines: the first interval,
PLAIN_GROWTH = 0.02  # which becomes this share of the time run so far,
PLAIN_MAX_SECONDS = 300.0  # up to this


class Console:
    """Says nothing: the console of every rank but 0."""

    def progress(self, step: int, num_steps: int, values: dict[str, Number], *, force: bool = False) -> None:
        """Show where the run is; may skip lines unless `force`."""

    def note(self, text: str) -> None:
        """One whole line that is always printed."""

    def close(self) -> None:
        """Leave the cursor on a fresh line."""


class PlainConsole(Console):
    """Whole lines, for log files and pipes."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._eta = Eta()
        self._started = time.monotonic()
        self._next = self._started

    def progress(self, step: int, num_steps: int, values: dict[str, Number], *, force: bool = False) -> None:
        """One line at first, then at growing intervals, and when forced."""
        now = time.monotonic()
        self._eta.add(step, now)
        if now < self._next and not force:
            return
        interval = max(PLAIN_FIRST_SECONDS, PLAIN_GROWTH * (now - self._started))
        self._next = now + min(interval, PLAIN_MAX_SECONDS)
        self.note(" | ".join(describe(step, num_steps, values, self._eta.seconds(num_steps))))

    def note(self, text: str) -> None:
        """Print and flush, so that a log can be followed."""
        print(text, file=self._stream, flush=True)


class TerminalConsole(Console):
    """One line that is redrawn in place; notes scroll above it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._eta = Eta()
        self._drawn = ""
        self._next = 0.0

    def progress(self, step: int, num_steps: int, values: dict[str, Number], *, force: bool = False) -> None:
        """Redraw the line."""
        now = time.monotonic()
        self._eta.add(step, now)
        if now < self._next and not force:
            return
        self._next = now + LIVE_INTERVAL_SECONDS
        parts = describe(step, num_steps, values, self._eta.seconds(num_steps))
        self._draw(fit_width(parts, shutil.get_terminal_size().columns - 1))

    def note(self, text: str) -> None:
        """Print `text` above the live line."""
        drawn = self._drawn
        self._draw("")
        self._stream.write(text + "\n")
        self._draw(drawn)

    def close(self) -> None:
        """Keep the last line and go below it."""
        if self._drawn:
            self._stream.write("\n")
            self._stream.flush()
            self._drawn = ""

    def _draw(self, line: str) -> None:
        self._stream.write("\r" + line + " " * max(0, len(self._drawn) - len(line)) + ("\r" if not line else ""))
        self._stream.flush()
        self._drawn = line


def open_console(rank: int, stream: TextIO | None = None) -> Console:
    """The console for this process: silent unless `rank` is 0, live when `stream` (standard output) is a terminal."""
    if rank != 0:
        return Console()
    stream = sys.stdout if stream is None else stream
    return TerminalConsole(stream) if stream.isatty() else PlainConsole(stream)


@contextmanager
def logging_above(console: Console) -> Iterator[None]:
    """While active, log lines that go to standard output are notes of `console`: they do not break its live line."""
    handlers = [
        h for h in logging.getLogger().handlers if isinstance(h, logging.StreamHandler) and h.stream is sys.stdout
    ]
    for handler in handlers:
        handler.setStream(_NoteStream(console))
    try:
        yield
    finally:
        for handler in handlers:
            handler.setStream(sys.stdout)


class _NoteStream(io.TextIOBase):
    """What a logging handler needs of a stream."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def write(self, text: str) -> int:
        self._console.note(text.removesuffix("\n"))
        return len(text)


class Eta:
    """Time left, from the pace of this attempt's recent steps."""

    def __init__(self, memory: float = 0.9) -> None:
        self._memory = memory
        self._last: tuple[int, float] | None = None
        self._seconds_per_step: float | None = None

    def add(self, step: int, now: float) -> None:
        """`step` was finished at `now` (seconds of any steady clock). Time in hooks counts."""
        if self._last is not None and step > self._last[0]:
            pace = (now - self._last[1]) / (step - self._last[0])
            old = pace if self._seconds_per_step is None else self._seconds_per_step
            self._seconds_per_step = self._memory * old + (1 - self._memory) * pace
        self._last = (step, now)

    def seconds(self, num_steps: int) -> float | None:
        """Seconds until `num_steps`; None before two steps were seen."""
        if self._last is None or self._seconds_per_step is None:
            return None
        return max(0, num_steps - self._last[0]) * self._seconds_per_step


def describe(step: int, num_steps: int, values: dict[str, Number], eta_seconds: float | None) -> list[str]:
    """The parts of a progress line, the most important first."""
    parts = [f"step {step}/{num_steps}"]
    if "loss" in values:
        parts.append(f"loss {values['loss']:.4f}")
    if "tokens_per_second" in values:
        parts.append(f"{scaled(values['tokens_per_second'])} tokens/s")
    if eta_seconds is not None:
        parts.append(f"ETA {duration(eta_seconds)}")
    if "model_flops_per_second" in values:
        parts.append(f"{scaled(values['model_flops_per_second'])}FLOP/s")
    if "lr" in values:
        parts.append(f"lr {values['lr']:.2e}")
    if "grad_norm" in values:
        parts.append(f"grad {values['grad_norm']:.2f}")
    return parts


def fit_width(parts: list[str], width: int) -> str:
    """As many whole parts as fit in `width` columns; the first is cut when even it does not."""
    line = parts[0][: max(0, width)]
    for part in parts[1:]:
        if len(line) + 3 + len(part) > width:
            break
        line += " | " + part
    return line


def scaled(value: Number) -> str:
    """Three significant digits with an SI prefix: 12345 -> `12.3k`."""
    for prefix, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g}{prefix}"
    return f"{value:.3g}"


def duration(seconds: float) -> str:
    """`2d 03h`, `3h 05m`, `4m 07s` or `9s`."""
    left = round(seconds)
    for size, small, names in ((86400, 3600, "dh"), (3600, 60, "hm"), (60, 1, "ms")):
        if left >= size:
            return f"{left // size}{names[0]} {left % size // small:02d}{names[1]}"
    return f"{left}s"
