"""The last steps that were kept, and every step that was not: what decides about the next one.

Part of the checkpoint, and the same numbers on every rank, so that a resumed run decides as the uninterrupted one did.
"""

import math
import statistics
from collections import deque
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

from loopcoder_train.config import GuardsConfig, UserError

MAD_TO_SIGMA = 1.4826  # a normal distribution's standard deviation is that many median absolute deviations
# The least deviation that is assumed, so that a very quiet stretch makes no spike of a ripple.
LEAST_LOSS_SIGMA = 1e-3  # of the median loss
LEAST_LOG_NORM_SIGMA = 0.02


class Cause(Enum):
    """What was wrong with a step."""

    nonfinite = "nonfinite"
    spike = "spike"
    unlabelled = "unlabelled"  # no token of the batch is supervised: all of it was damaged


@dataclass(frozen=True, kw_only=True, slots=True)
class BadStep:
    """An entry of the ledger: a batch that was read and whose step was not made."""

    batch: int  # number of the batch in the stream, from 0; its first sequence is batch * global batch size
    step: int  # the optimizer step that it would have been
    cause: Cause
    loss: float | None  # nats per token; None: not finite
    grad_norm: float | None
    back_to: int | None = None  # step of the checkpoint that the run went back to; None: only the batch was skipped

    def to_json(self) -> dict[str, Any]:
        """A flat JSON object."""
        return {**asdict(self), "cause": self.cause.name}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "BadStep":
        """The entry saved by :meth:`to_json`. KeyError, TypeError or ValueError for anything else."""
        return cls(**{**values, "cause": Cause[values["cause"]]})


@dataclass(slots=True)
class StepHistory:
    """Loss and gradient norm of the steps that were kept last, and the ledger of all that were not, oldest first."""

    length: int = 128
    losses: deque[float] = field(init=False)
    grad_norms: deque[float] = field(init=False)
    ledger: list[BadStep] = field(default_factory=list)
    segment: int = 0  # of the data, that the remembered steps read

    def __post_init__(self) -> None:
        self.losses, self.grad_norms = deque(maxlen=self.length), deque(maxlen=self.length)

    def enter_segment(self, segment: int) -> None:
        """The next step reads this segment: losses on other data are no yardstick for it."""
        if segment != self.segment:
            self.segment = segment
            self.losses.clear()
            self.grad_norms.clear()

    def keep(self, loss: float, grad_norm: float) -> None:
        """A step was made."""
        self.losses.append(loss)
        self.grad_norms.append(grad_norm)

    def sigmas(self, loss: float, grad_norm: float) -> tuple[float, float]:
        """How many robust standard deviations both lie above the median of the history (which must not be empty).

        Both values are finite. The norm is compared in logarithms: it is skewed, and its scale moves while training.
        """
        least = LEAST_LOSS_SIGMA * abs(statistics.median(self.losses))
        return (
            robust_sigmas(loss, list(self.losses), least),
            robust_sigmas(_log(grad_norm), [_log(norm) for norm in self.grad_norms], LEAST_LOG_NORM_SIGMA),
        )

    def bad_in_a_row(self, batch: int) -> int:
        """How many batches directly before `batch` were bad."""
        bad = {entry.batch for entry in self.ledger}
        count = 0
        while batch - 1 - count in bad:
            count += 1
        return count

    def bad_since(self, batch: int) -> int:
        """How many batches from `batch` on were bad."""
        return sum(entry.batch >= batch for entry in self.ledger)

    @property
    def rewinds(self) -> int:
        """How often the run went back to a checkpoint."""
        return sum(entry.back_to is not None for entry in self.ledger)

    def to_json(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {
            "losses": list(self.losses),
            "grad_norms": list(self.grad_norms),
            "segment": self.segment,
            "ledger": [entry.to_json() for entry in self.ledger],
        }

    @classmethod
    def from_json(cls, values: dict[str, Any], length: int) -> "StepHistory":
        """The history saved by :meth:`to_json`, of which the newest `length` steps count. UserError for another."""
        history = cls(length)
        try:
            history.losses.extend(float(loss) for loss in values["losses"])
            history.grad_norms.extend(float(norm) for norm in values["grad_norms"])
            history.segment = int(values.get("segment", 0))
            history.ledger = [BadStep.from_json(entry) for entry in values["ledger"]]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"checkpoint state: history is not one ({error}); use an older checkpoint") from error
        return history


def judge(history: StepHistory, config: GuardsConfig, loss: float, grad_norm: float) -> tuple[Cause, str] | None:
    """What is wrong with a step of this `loss` and `grad_norm`, and in words; None when it is to be kept.

    A pure function of its arguments: ranks, resumed and repeated runs that call it alike decide alike.
    """
    if not (math.isfinite(loss) and math.isfinite(grad_norm)):
        return Cause.nonfinite, f"loss={loss}, gradient norm={grad_norm}"
    if len(history.losses) < config.spike_warmup_steps:
        return None
    sigmas = history.sigmas(loss, grad_norm)
    for name, value, most, remembered in (
        ("loss", loss, sigmas[0], history.losses),
        ("gradient norm", grad_norm, sigmas[1], history.grad_norms),
    ):
        if most > config.spike_sigmas:
            usual = f"the median {statistics.median(remembered):.4g} of the last {len(remembered)} steps"
            return Cause.spike, f"{name}={value:.4g} lies {most:.1f} deviations above {usual}"
    return None


def robust_sigmas(value: float, values: list[float], least_sigma: float) -> float:
    """How many standard deviations `value` lies above the median of `values`, both estimated by medians."""
    median = statistics.median(values)
    sigma = MAD_TO_SIGMA * statistics.median(abs(other - median) for other in values)
    return (value - median) / max(sigma, least_sigma, 1e-30)


def _log(norm: float) -> float:
    return math.log(max(norm, 1e-30))  # a gradient of zero is unusual, but no spike
