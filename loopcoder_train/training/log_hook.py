"""Writes each step to `metrics.jsonl` and keeps the progress line alive."""

from collections.abc import Mapping

import torch

from loopcoder_train.config import ModelConfig
from loopcoder_train.training.consumption import side_tokens
from loopcoder_train.training.loop import Hook, Run, Step
from loopcoder_train.training.throughput import ThroughputMeter


class LogHook(Hook):
    """One train record per `every_steps` steps, with the loss of that step and the speed since the last record."""

    doing = "logging"

    def __init__(
        self, model: ModelConfig, device: torch.device, *, every_steps: int, kinds: Mapping[str, str] | None = None
    ) -> None:
        """`kinds`: source -> text | code, for the tokens of either side; empty where nobody counts sources."""
        self._model, self._device, self._every_steps = model, device, every_steps
        self._kinds = kinds or {}
        self._meter: ThroughputMeter | None = None
        self._last: Step | None = None

    def on_start(self, run: Run) -> None:
        """Say where this attempt starts."""
        self._meter = ThroughputMeter(self._model, run.engine, self._device)
        run.state.attempt = run.metrics.attempt
        step = run.state.step
        name, message = ("resumed", f"resumed after step {step}") if step else ("started", "started")
        run.metrics.event(name, step, f"{message} of {run.num_steps}", **self._position(run), **run.accounts.spent())

    def after_step(self, run: Run, step: Step) -> None:
        """Count the step; write when it is due."""
        self._meter.add(step)
        self._last = step
        if step.number % self._every_steps == 0:
            self._write(run, force=False)

    def on_stop(self, run: Run) -> None:
        """Write what is left of the window and say why the run ended."""
        if self._meter.steps:
            self._write(run, force=True)
        reason = run.stop_reason or ("finished" if run.state.step >= run.num_steps else "stopped after the asked step")
        run.metrics.event("stopped", run.state.step, f"{reason} at step {run.state.step} of {run.num_steps}")

    def _position(self, run: Run) -> dict[str, int]:
        return {"tokens": run.state.tokens, "batches": run.state.batches}

    def _write(self, run: Run, *, force: bool) -> None:
        step = self._last
        values = {
            "tokens": run.state.tokens,
            "supervised_tokens": run.state.supervised_tokens,
            "batches": run.state.batches,
            **(side_tokens(run.state.source_tokens, self._kinds) if self._kinds else {}),
            "loss": step.loss,
            "lr": step.learning_rate,
            "grad_norm": step.grad_norm,
            **self._meter.read().metrics(),
            **run.accounts.metrics(run.state.kept_seconds),
        }
        run.metrics.write("train", step.number, values)
        run.console.progress(step.number, run.num_steps, values, force=force or step.number == run.last_step)
