"""What this process is doing, and that it gets on: a phase in words and a count that grows.

Whoever works says so here; the watchdog looks. Both calls are a few assignments, so they may stand in every step.
"""

from dataclasses import dataclass


@dataclass(slots=True)
class Heart:
    """This process's. `beats` grows with every sign of progress, from whichever thread."""

    phase: str = "start-up"
    beats: int = 0


HEART = Heart()


def enter(phase: str) -> None:
    """This process begins something: `phase` ends the sentence "no progress in ..."."""
    HEART.phase = phase
    HEART.beats += 1


def beat() -> None:
    """What this process is doing gets on: a batch of an evaluation, a piece of a file."""
    HEART.beats += 1
