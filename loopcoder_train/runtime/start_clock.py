"""What an attempt's way to its first step is made of.

All times are of `time.monotonic`, which on Linux is one clock for all processes of a machine: the launcher hands over
when it began, and nobody minds the clock of the day being set.
"""

import time
from collections.abc import Mapping

from loopcoder_train.config.process import LAUNCHER_BEGAN, process_began

# In the order of a start. start: from the launcher's beginning to this process; imports: this process until it knows
# what to do and has torch, and later Megatron; load_checkpoint: or another run's weights; records: metrics.jsonl and
# the loggers.
PARTS = (
    "start",
    "imports",
    "device",
    "rendezvous",
    "corpus",
    "engine",
    "find_checkpoint",
    "load_checkpoint",
    "records",
    "hooks",
    "first_batch",
    "first_step",
)


class StartClock:
    """Seconds by part, without gaps, from `began` until :meth:`stop`. Runs on after it was made: `part` is the first.

    `knows_launcher`: whether `began` is the launcher's beginning, so that the part "start" was seen.
    """

    def __init__(self, part: str, *, began: float | None = None, knows_launcher: bool = False) -> None:
        self.began = time.monotonic() if began is None else began
        self.knows_launcher = knows_launcher
        self.seconds: dict[str, float] = {}
        self._part, self._since = part, self.began
        self._stopped = False

    @classmethod
    def of_this_process(cls, environment: Mapping[str, str]) -> "StartClock":
        """Since the launcher began, or since this process began where no launcher of ours tells."""
        told, own = environment.get(LAUNCHER_BEGAN), process_began()
        if told is None:
            return cls("imports", began=own)
        clock = cls("start", began=min(float(told), own), knows_launcher=True)
        clock.enter("imports", at=own)
        return clock

    def enter(self, part: str, *, at: float | None = None) -> None:
        """From `at` (now) on the time goes to `part`; a part that comes again adds up. KeyError for an unknown one."""
        if part not in PARTS:
            raise KeyError(part)
        if not self._stopped:
            now = time.monotonic() if at is None else at
            self.seconds[self._part] = self.seconds.get(self._part, 0.0) + now - self._since
            self._part, self._since = part, now

    def stop(self) -> dict[str, float]:
        """The start is over: its seconds by part, in order. Later calls return the same."""
        self.enter(self._part)
        self._stopped = True
        return {part: self.seconds[part] for part in PARTS if part in self.seconds}
