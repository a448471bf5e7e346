"""Tells once per attempt what its way to the end of its first step was made of. First in the list of hooks, so that no
other hook's work after that step is counted."""

from loopcoder_train.runtime.start_clock import StartClock
from loopcoder_train.training.loop import Hook, Run, Step

READY = "ready"  # event


class StartHook(Hook):
    """One line and one event after the first step, whether it was made or refused. `clock` has run since the start."""

    doing = "the account of the start"

    def __init__(self, clock: StartClock) -> None:
        self._clock: StartClock | None = clock

    def after_step(self, run: Run, step: Step) -> None:
        """Tell after the first step."""
        self._tell(run, step)

    def after_bad_step(self, run: Run, step: Step) -> None:
        """Likewise: it took as long."""
        self._tell(run, step)

    def _tell(self, run: Run, step: Step) -> None:
        if self._clock is None:
            return
        clock, self._clock = self._clock, None
        parts = clock.stop()
        seconds = sum(parts.values())
        message = f"ready in {describe(seconds, parts)}"
        if not clock.knows_launcher:
            message += " (since this process began; what its launcher took before is not known)"
        details = {"ready_seconds": round(seconds, 3), "parts": {part: round(s, 3) for part, s in parts.items()}}
        run.metrics.event(READY, run.state.step, message, first_step=step.number, **details)
        run.console.note(message)


def describe(seconds: float, parts: dict[str, float]) -> str:
    """`14.2 s: start 0.3, imports 5.1, ...`; parts below 0.05 s are left to the event."""
    told = ", ".join(f"{part.replace('_', ' ')} {value:.1f}" for part, value in parts.items() if value >= 0.05)
    return f"{seconds:.1f} s: {told}" if told else f"{seconds:.1f} s"
