"""Measures held-out loss while training. What is measured comes in as a function (`evaluation/heldout.py`)."""

import time
from collections.abc import Callable, Mapping

from loopcoder_train.training.loop import Hook, Run, Step

Evaluate = Callable[[], Mapping[str, float] | None]


class EvaluateHook(Hook):
    """Calls `evaluate` every `every_steps` steps and at the end, on every rank; keeps the best loss in the state.

    `evaluate` returns a flat mapping of metric names to numbers, equal on every rank, with the last loop's loss over
    everything under `loss`; or None, on every rank, when it was cut short because the run shall stop. Then the next
    attempt begins with this evaluation.
    """

    doing = "the evaluation"

    def __init__(self, evaluate: Evaluate, *, every_steps: int) -> None:
        self._evaluate, self._every_steps = evaluate, every_steps
        self._done_at: int | None = None

    def on_start(self, run: Run) -> None:
        """The step this attempt starts from was evaluated by the one before, unless that one owes it."""
        self._done_at = run.state.step
        if run.state.evaluation_owed:
            self._run(run)

    def after_step(self, run: Run, step: Step) -> None:
        """Evaluate when it is due."""
        if step.number % self._every_steps == 0 or step.number == run.last_step:  # before the last save
            self._run(run)

    def on_stop(self, run: Run) -> None:
        """Evaluate the final weights, unless somebody asked to stop: then every second counts."""
        if run.stop_reason is None and self._done_at != run.state.step:
            self._run(run)

    def _run(self, run: Run) -> None:
        started = time.perf_counter()
        values, state = self._evaluate(), run.state
        state.evaluation_owed = values is None
        if values is None:
            return
        self._done_at = state.step
        if state.best_held_out_loss is None or values["loss"] < state.best_held_out_loss:
            state.best_held_out_loss, state.best_step = values["loss"], state.step
        seconds = time.perf_counter() - started
        run.metrics.write("evaluation", state.step, {"tokens": state.tokens, **values, "seconds": seconds})
        run.console.note(
            f"held-out loss {values['loss']:.4f} after step {state.step} "
            f"(best {state.best_held_out_loss:.4f} after step {state.best_step})"
        )
