"""What watches over a run: bad steps, corrupted replicas, hung and slow processes."""

from dataclasses import dataclass
from enum import Enum

from loopcoder_train.config.errors import require, require_positive

SHORTEST_HANG_SECONDS = 5.0  # heartbeats come 20 times as often


class OnBadStep(Enum):
    """What becomes of a step that is not to be kept. Whatever it is, its update is never made."""

    ignore = "ignore"  # make the update all the same; for spikes only
    skip = "skip"  # go on with the next batch
    rewind = "rewind"  # go back to the last good checkpoint, and on with the next batch
    stop = "stop"  # end the run


@dataclass(kw_only=True, slots=True)
class GuardsConfig:
    """When a step is bad and what is done then; how often replicas are compared; how long a hang may last.

    The loss is a spike when it lies more than `spike_sigmas` deviations above the median of the last `history_steps`
    steps that were kept, the deviation being 1.4826 times the median distance from it; the gradient norm alike, in
    logarithms.
    """

    nonfinite: OnBadStep = OnBadStep.skip  # the loss or the gradient norm is NaN or infinite
    spike: OnBadStep = OnBadStep.skip
    spike_sigmas: float = 16.0
    history_steps: int = 128
    spike_warmup_steps: int = 64  # with fewer steps in the history nothing is a spike
    max_bad_steps_in_a_row: int = 5  # more: the run stops
    max_bad_steps: int = 20  # among the last `bad_step_window` batches; more: the run stops
    bad_step_window: int = 1000
    max_rewinds: int = 3  # over the whole run; more: the run stops
    compare_replicas_every_steps: int | None = 200  # also before every save; None: never
    recompute_every_steps: int | None = None  # two more passes over that step's data; None: never
    hang_timeout_seconds: float | None = 600.0  # a job without progress for so long is ended; None: it may hang
    slow_rank_every_steps: int | None = 50  # None: never
    slow_rank_factor: float = 1.5  # a rank whose own work takes so many times the median is named

    def __post_init__(self) -> None:
        require(
            self.nonfinite is not OnBadStep.ignore,
            "guards.nonfinite",
            self.nonfinite.name,
            "would put NaN into the weights",
            "use skip, rewind or stop",
        )
        require_positive(
            guards__spike_sigmas=self.spike_sigmas,
            guards__history_steps=self.history_steps,
            guards__spike_warmup_steps=self.spike_warmup_steps,
            guards__bad_step_window=self.bad_step_window,
        )
        timeout = self.hang_timeout_seconds
        require(
            timeout is None or timeout >= SHORTEST_HANG_SECONDS,
            "guards.hang_timeout_seconds",
            timeout,
            f"must be at least {SHORTEST_HANG_SECONDS:g}, or null for never",
        )
        require(self.slow_rank_factor > 1, "guards.slow_rank_factor", self.slow_rank_factor, "must be more than 1")
        for name in ("compare_replicas_every_steps", "recompute_every_steps", "slow_rank_every_steps"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"guards.{name}", value, "must be at least 1, or null for never")
        for name in ("max_bad_steps_in_a_row", "max_bad_steps", "max_rewinds"):
            require(getattr(self, name) >= 0, f"guards.{name}", getattr(self, name), "must be 0 or more")
        require(
            self.spike_warmup_steps <= self.history_steps,
            "guards.spike_warmup_steps",
            self.spike_warmup_steps,
            f"must not exceed guards.history_steps={self.history_steps}: the history never gets longer",
        )
