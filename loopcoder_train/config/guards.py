"""What watches over a run: bad steps, corrupted replicas, hung and slow processes."""

from dataclasses import dataclass
from enum import Enum

from loopcoder_train.config.errors import require, require_positive


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
    spike_sigmas: float = 10.0
    history_steps: int = 128
    spike_warmup_steps: int = 64  # with fewer steps in the history nothing is a spike
    max_bad_steps_in_a_row: int = 5  # more: the run stops
    max_bad_steps: int = 20  # among the last `bad_step_window` batches; more: the run stops
    bad_step_window: int = 1000
    max_rewinds: int = 3  # over the whole run; more: the run stops

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
        for name in ("max_bad_steps_in_a_row", "max_bad_steps", "max_rewinds"):
            require(getattr(self, name) >= 0, f"guards.{name}", getattr(self, name), "must be 0 or more")
        require(
            self.spike_warmup_steps <= self.history_steps,
            "guards.spike_warmup_steps",
            self.spike_warmup_steps,
            f"must not exceed guards.history_steps={self.history_steps}: the history never gets longer",
        )
