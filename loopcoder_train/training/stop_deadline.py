"""When an attempt must have ended, and how long before that it has to begin to stop."""

import time
from collections import deque
from collections.abc import Mapping

from loopcoder_train.config import UserError
from loopcoder_train.config.process import END_TIME

SAFETY = 2.0  # a step and a save may take this many times as long as the last ones
EXIT_SECONDS = 10.0  # from the last save to the end of the process
FIRST_SAVE_SECONDS = 60.0  # assumed before a save was measured,
FIRST_SAVE_SHARE = 0.25  # but no more than this share of the attempt
_STEPS = 10  # the longest of the last ones counts: the first of an attempt is slow


class Deadline:
    """`end`, `started`: Unix seconds; the end of an attempt and when it began."""

    def __init__(self, *, started: float, end: float) -> None:
        self._end, self._total = end, end - started
        self._steps: deque[float] = deque(maxlen=_STEPS)
        self.save_seconds: float | None = None  # how long the last save took; None before one was measured

    def add_step(self, seconds: float) -> None:
        """A step took this long."""
        self._steps.append(seconds)

    @property
    def margin(self) -> float:
        """Seconds that the next step, a save and the end of the process may take."""
        save_seconds = self.save_seconds
        if save_seconds is None:
            save_seconds = min(FIRST_SAVE_SECONDS, FIRST_SAVE_SHARE * self._total) / SAFETY
        longest_step = max(self._steps, default=0.0)
        return SAFETY * (longest_step + save_seconds) + min(EXIT_SECONDS, FIRST_SAVE_SHARE * self._total)

    def is_near(self, now: float | None = None) -> bool:
        """Whether another step could be one too many. `now`: Unix seconds, default the clock's."""
        now = time.time() if now is None else now
        return now + self.margin >= self._end

    def require_a_step(self) -> None:
        """Raise UserError when there is no time for any: started again and again, such a run would never move."""
        if self.is_near():
            raise UserError(
                f"training.time_limit_minutes={self._total / 60:.3g} (or SLURM's time limit): starting took "
                f"{self._total - (self._end - time.time()):.0f} s and {self.margin:.0f} s are needed to "
                "save and end; give more time"
            )


def deadline_of(started: float, time_limit_minutes: float | None, environment: Mapping[str, str]) -> Deadline | None:
    """The earlier of the option's and SLURM's limit; None without any. `started`: Unix seconds."""
    ends = [] if time_limit_minutes is None else [started + 60 * time_limit_minutes]
    given = environment.get(END_TIME, "")
    if given.isdecimal() and int(given) > started:  # 0 where SLURM has no limit
        ends.append(float(given))
    return Deadline(started=started, end=min(ends)) if ends else None
