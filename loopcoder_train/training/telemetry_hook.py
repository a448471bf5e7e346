"""Cheap numbers about the loops while training: gates, step sizes, scale of the two loop inputs, output KL."""

from loopcoder_train.engines.engine import MicroBatch
from loopcoder_train.training.loop import Hook, Run, Step


class TelemetryHook(Hook):
    """`engine.loop_telemetry(batch)` every `every_steps` steps, always on the same held-out batch."""

    doing = "telemetry"

    def __init__(self, batch: MicroBatch, *, every_steps: int) -> None:
        self._batch, self._every_steps = batch, every_steps

    def after_step(self, run: Run, step: Step) -> None:
        """Measure when it is due."""
        if step.number % self._every_steps == 0:
            values = run.engine.loop_telemetry(self._batch)
            run.metrics.write("telemetry", step.number, {"tokens": run.state.tokens, **values})
