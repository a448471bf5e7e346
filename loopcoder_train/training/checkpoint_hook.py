"""Saves the run at an interval and when it stops. Last in the list of hooks, so that nothing bad is ever saved.

A save that fails while training goes on (disk full) costs one loud line and an event; the next interval tries again
and the last good checkpoint stays. A save that fails when the run stops ends it with an error, because the steps since
the last good checkpoint are gone.
"""

from collections.abc import Callable, Mapping

import torch

from loopcoder_train.checkpoint import SaveFailed, SaveReport, save_checkpoint
from loopcoder_train.config import CheckpointConfig, UserError
from loopcoder_train.training.loop import Hook, Run, Step
from loopcoder_train.training.resume import Json, RunSnapshot, rank_state


class CheckpointHook(Hook):
    """Saves weights, optimizer, counters and data position.

    `stream_state(step)` is the data position after `step` steps; `logger_run_ids` and
    `options` (those that change the result) are kept for the next attempt.
    """

    def __init__(
        self,
        config: CheckpointConfig,
        device: torch.device,
        *,
        stream_state: Callable[[int], Json],
        logger_run_ids: Mapping[str, str],
        options: Json,
    ) -> None:
        self._config, self._device = config, device
        self._stream_state, self._logger_run_ids, self._options = stream_state, dict(logger_run_ids), options
        self._saved_at = 0

    def on_start(self, run: Run) -> None:
        """A resumed run starts from a saved step; step 0 is a function of the seed."""
        self._saved_at = run.state.step

    def after_step(self, run: Run, step: Step) -> None:
        """Save when it is due; go on without when that fails."""
        if step.number % self._config.every_steps != 0:
            return
        error = self._save(run)
        if error is not None:
            message = (
                f"checkpoint of step {step.number} could not be written ({error}); training goes on, "
                f"last good checkpoint: {self._last_good()}"
            )
            run.metrics.event("save_failed", step.number, message)
            run.console.note(f"ERROR: {message}")

    def on_stop(self, run: Run) -> None:
        """Save the last step."""
        if self._saved_at == run.state.step:
            return
        error = self._save(run)
        if error is not None:
            message = (
                f"{run.run_dir}: the checkpoint of the last step {run.state.step} could not be written ({error}); "
                f"last good checkpoint: {self._last_good()}; make room and run the same command again"
            )
            run.metrics.event("save_failed", run.state.step, message)
            raise UserError(message) from error

    def _last_good(self) -> str:
        return f"step {self._saved_at}" if self._saved_at else "none"

    def _save(self, run: Run) -> SaveFailed | None:
        snapshot = RunSnapshot(
            training=run.state,
            engine=run.engine.state_scalars(),
            stream=self._stream_state(run.state.step),
            loggers=self._logger_run_ids,
            options=self._options,
        )
        try:
            report = save_checkpoint(
                run.run_dir,
                run.state.step,
                run.engine.state_shards(loading=False),
                snapshot.to_json(),
                rank_state=rank_state(self._device),
                keep_last=self._config.keep_last,
                keep_every_steps=self._config.keep_every_steps,
            )
        except SaveFailed as error:
            return error
        self._saved_at = run.state.step
        self._report(run, report)
        return None

    def _report(self, run: Run, report: SaveReport) -> None:
        seconds = report.snapshot_seconds + report.write_seconds + report.verify_seconds + report.commit_seconds
        run.save_seconds = seconds
        sizes = {"checkpoint_bytes": report.total_bytes, "save_seconds": seconds, "pruned": report.pruned}
        run.metrics.event("saved", run.state.step, f"saved the checkpoint of step {run.state.step}", **sizes)
        for warning in report.warnings:
            run.metrics.event("save_warning", run.state.step, warning)
            run.console.note(f"WARNING: {warning}")
