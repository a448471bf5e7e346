"""Ends a run whose loss or gradient is no longer a number, before anything of that step is saved.

First in the list of hooks. Skipping or rewinding bad steps is a matter of guards, which go in the same place.
"""

import math

from loopcoder_train.config import UserError
from loopcoder_train.training.loop import Hook, Run, Step


class TrainingDivergedError(UserError):
    """The loss or the gradient norm became NaN or infinite. The same configuration would end in the same place."""


class DivergenceHook(Hook):
    """Raises :class:`TrainingDivergedError` on every rank alike: loss and gradient norm are global numbers."""

    def after_step(self, run: Run, step: Step) -> None:
        """Check one step."""
        if math.isfinite(step.loss) and math.isfinite(step.grad_norm):
            return
        message = (
            f"training diverged at step {step.number}: loss={step.loss}, gradient norm={step.grad_norm}, learning "
            f"rate={step.learning_rate:.3g}; nothing of this step was saved, checkpoints before it are good; start a "
            f"new run with a lower optimizer.peak_lr or a longer schedule.warmup_fraction"
        )
        run.metrics.event("diverged", step.number, message)
        raise TrainingDivergedError(message)
