"""Names ranks that hold up the others: every rank waits for the slowest, so all steps look equally long.

What counts is a rank's own work: waiting for its data, and computing until it has nothing left but to wait for the
other replicas' gradients. Ranks that work on the same layers or rows together wait for each other before that, and are
slow together.
"""

import statistics

from loopcoder_train.checkpoint import Ranks
from loopcoder_train.training.across_ranks import Machines, gather_over_ranks
from loopcoder_train.training.loop import Hook, Run, Step


class SlowRankHook(Hook):
    """Every `every_steps` steps compares the ranks' own seconds per step with their median (the lower of two)."""

    doing = "the comparison of speeds"

    def __init__(self, every_steps: int, factor: float) -> None:
        self._every_steps, self._factor = every_steps, factor
        self._seconds, self._steps = 0.0, 0
        self._said: list[int] = []

    def on_start(self, run: Run) -> None:
        """Learn where everybody is."""
        self._ranks = Ranks.current()
        self._machines = Machines.of(self._ranks)

    def after_step(self, run: Run, step: Step) -> None:
        """Count the step; compare when it is due."""
        self._seconds += step.data_wait_seconds + run.engine.own_seconds
        self._steps += 1
        if step.number % self._every_steps == 0:
            self._compare(run)

    def _compare(self, run: Run) -> None:
        own = round(1e6 * self._seconds / self._steps)
        table = [micro / 1e6 for (micro,) in gather_over_ranks(run.engine, self._ranks, [own])]
        steps, self._seconds, self._steps = self._steps, 0.0, 0
        usual = statistics.median_low(table)
        slow = [rank for rank, seconds in enumerate(table) if seconds > self._factor * usual]
        if slow:
            worst = max(table)
            message = (
                f"slow: {self._machines.called(slow)}, up to {worst:.3g} s of own work per step where the median rank "
                f"has {usual:.3g} s (last {steps} steps); the others wait for it"
            )
            details = {"ranks": slow, "worst_seconds": worst, "median_seconds": usual}
            run.metrics.event("slow_ranks", run.state.step, message, **details)
            if slow != self._said:
                run.console.note(f"WARNING: {message}")
        self._said = slow
