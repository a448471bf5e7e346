"""What this process is doing, and that it gets on: a phase in words and a count that grows.

Whoever works says so here; the watchdog looks, and until the first step is done a clock counts what the start is made
of. Both calls are a few assignments, so they may stand in every step.
"""

from dataclasses import dataclass

from loopcoder_train.runtime.start_clock import StartClock


@dataclass(slots=True)
class Heart:
    """This process's. `beats` grows with every sign of progress, from whichever thread."""

    phase: str = "start-up"
    beats: int = 0
    clock: StartClock | None = None  # None: nobody asks what this start is made of, or it is over


HEART = Heart()


def enter(phase: str, *, part: str | None = None) -> None:
    """This process begins something: `phase` ends the sentence "no progress in ...".

    `part`: under which name of `start_clock.PARTS` the time of a start goes from here on; None: the same as before.
    """
    HEART.phase = phase
    HEART.beats += 1
    if part is not None and HEART.clock is not None:
        HEART.clock.enter(part)


def beat() -> None:
    """What this process is doing gets on: a batch of an evaluation, a piece of a file."""
    HEART.beats += 1
