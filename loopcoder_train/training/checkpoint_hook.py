"""Saves the run at an interval and when it stops. Last in the list of hooks, so that nothing bad is ever saved.

A save that fails while training goes on (disk full) costs one loud line and an event; the next interval tries again
and the last good checkpoint stays. A save that fails when the run stops ends it with an error, because the steps since
the last good checkpoint are gone.

With `checkpoint.asynchronous` a save is started after its step and its outcome is told after a later one. The next save
waits for it, and so does the end of the run.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import torch

from loopcoder_train.checkpoint import AsyncSaver, NoRoom, Ranks, SaveFailed, SaveReport, save_checkpoint
from loopcoder_train.checkpoint.errors import Shortage
from loopcoder_train.config import CheckpointConfig, UserError
from loopcoder_train.training.loop import Hook, Run, Step
from loopcoder_train.training.resume import Json, RunSnapshot, rank_state

NOTICEABLE_SECONDS = 1.0  # a longer wait for the former save is told
CLOSE_SECONDS = 30.0  # how long a run that ends with an error waits for the save in flight


@dataclass(slots=True)
class _InFlight:
    """A save that the thread works on."""

    step: int
    stall_seconds: float  # for which it has held up training so far


class CheckpointHook(Hook):
    """Saves weights, optimizer, counters and data position.

    `stream_state(batches)` is the data position after so many batches; `logger_run_ids` and `options` (those that
    change the result) are kept for the next attempt.
    """

    doing = "saving"

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
        self._saver: AsyncSaver | None = None
        self._in_flight: _InFlight | None = None
        self._run: Run | None = None
        self._told_low = False

    def on_start(self, run: Run) -> None:
        """A resumed run starts from a saved step; step 0 is a function of the seed."""
        self._run, self._saved_at = run, run.state.step
        if self._config.asynchronous:
            self._saver = AsyncSaver(run.run_dir, Ranks.for_a_thread(), **self._retention())

    def after_step(self, run: Run, step: Step) -> None:
        """Tell what came of the save in flight; save when it is due; go on without when that fails."""
        if self._in_flight and self._saver.done():
            self._settle(run)
        if step.number % self._config.every_steps == 0:
            self._wait_for_former(run)
            error = self._save(run)
            if error is not None:
                self._tell_failure(run, step.number, error)

    def after_bad_step(self, run: Run, step: Step) -> None:
        """The run may have gone back to the last good checkpoint."""
        self._saved_at = min(self._saved_at, run.state.step)

    @property
    def saved_at(self) -> int:
        """Step of the last good checkpoint as far as this rank knows without waiting; 0 without one."""
        return self._saved_at

    def last_saved(self, run: Run) -> int:
        """Step of the last good checkpoint, 0 without one, after waiting for the save in flight. Collective."""
        if self._in_flight:
            self._settle(run)
        return self._saved_at

    def on_stop(self, run: Run) -> None:
        """Wait for the save in flight, then save the last step."""
        if self._in_flight:
            self._settle(run)
        if self._saved_at == run.state.step:
            return
        error = self._save(run)
        if self._in_flight:
            error = self._finish(run)
        if error is not None:
            message = (
                f"{run.run_dir}: the checkpoint of the last step {run.state.step} could not be written ({error}); "
                f"last good checkpoint: {self._last_good()}; make room and run the same command again"
            )
            self._failure_event(run, run.state.step, error, message)
            raise UserError(message) from error

    def close(self) -> None:
        """After an error: give the save in flight a moment, as what it saves is good, and never wait for lost partners.

        The error that ends the run is on its way up, so nothing is raised here.
        """
        if self._in_flight is None:
            return
        step = self._in_flight.step
        if not self._saver.wait(CLOSE_SECONDS):
            problem = f"was still being written after {CLOSE_SECONDS:.0f} s and is lost"
        elif isinstance(error := self._saver.error(), SaveFailed | None):
            self._settle(self._run, "the run ends with another error")
            return
        else:
            problem = f"could not be written ({type(error).__name__}: {error})"
        self._run.console.note(f"ERROR: the checkpoint of step {step} {problem}; last good one: {self._last_good()}")

    def _save(self, run: Run) -> SaveFailed | None:
        """Save this step, or only start to; the error of a save that the file system refused."""
        began = time.perf_counter()
        step = run.state.step
        snapshot = RunSnapshot(
            training=run.state,
            engine=run.engine.state_scalars(),
            stream=self._stream_state(run.state.batches),
            loggers=self._logger_run_ids,
            options=self._options,
            history=run.history.to_json(),
        )
        what = step, run.engine.state_shards(loading=False), snapshot.to_json()
        own = rank_state(self._device)
        if self._saver is not None:
            self._saver.start(*what, rank_state=own)
            self._in_flight = _InFlight(step, time.perf_counter() - began)
            return None
        try:
            report = save_checkpoint(run.run_dir, *what, rank_state=own, **self._retention())
        except SaveFailed as error:
            return error
        self._tell_success(run, step, report, time.perf_counter() - began)
        return None

    def _wait_for_former(self, run: Run) -> None:
        """A save is due: the one in flight has to end first, and if that holds up training, somebody should know."""
        if self._in_flight is None:
            return
        former, began = self._in_flight.step, time.perf_counter()
        self._settle(run)
        seconds = time.perf_counter() - began
        if seconds > NOTICEABLE_SECONDS:
            message = (
                f"training waited {seconds:.1f} s until the checkpoint of step {former} was written; a larger "
                f"checkpoint.every_steps than {self._config.every_steps} avoids that"
            )
            run.metrics.event("save_waited", run.state.step, message, waited_seconds=seconds)
            run.console.note(f"WARNING: {message}")

    def _settle(self, run: Run, then: str = "training goes on") -> None:
        """Wait for the save in flight and tell what came of it."""
        step = self._in_flight.step
        error = self._finish(run)
        if error is not None:
            self._tell_failure(run, step, error, then)

    def _finish(self, run: Run) -> SaveFailed | None:
        """Wait for the save in flight, tell its success or return its error; raises what is no matter of the disk."""
        in_flight, self._in_flight = self._in_flight, None
        began = time.perf_counter()
        try:
            report = self._saver.result()
        except SaveFailed as error:
            return error
        stall = max(in_flight.stall_seconds, report.snapshot_seconds) + time.perf_counter() - began
        self._tell_success(run, in_flight.step, report, stall)
        return None

    def _tell_success(self, run: Run, step: int, report: SaveReport, stall_seconds: float) -> None:
        # Sinks take steps in order only, so events carry the step at which they are told.
        self._saved_at = step
        seconds = report.snapshot_seconds + report.write_seconds + report.verify_seconds + report.commit_seconds
        run.save_seconds = seconds
        run.metrics.event(
            "saved",
            run.state.step,
            f"saved the checkpoint of step {step}",
            checkpoint_step=step,
            checkpoint_bytes=report.total_bytes,
            save_seconds=seconds,
            stall_seconds=stall_seconds,
            pruned=report.pruned,
        )
        self._tell_whether_the_next_fits(run, report.next_shortage)
        for warning in report.warnings:
            run.metrics.event("save_warning", run.state.step, warning)
            run.console.note(f"WARNING: {warning}")

    def _tell_failure(self, run: Run, step: int, error: SaveFailed, then: str = "training goes on") -> None:
        message = (
            f"checkpoint of step {step} could not be written ({error}); {then}, "
            f"last good checkpoint: {self._last_good()}"
        )
        self._failure_event(run, step, error, message)
        run.console.note(f"ERROR: {message}")

    def _failure_event(self, run: Run, step: int, error: SaveFailed, message: str) -> None:
        """`disk_low` where no write was begun, `save_failed` where one went wrong."""
        name, sizes = "save_failed", {}
        if isinstance(error, NoRoom):
            name, sizes = "disk_low", asdict(error.shortage)
        run.metrics.event(name, run.state.step, message, checkpoint_step=step, **sizes)

    def _tell_whether_the_next_fits(self, run: Run, shortage: Shortage | None) -> None:
        """Once, ahead of time; again only after there was room in between."""
        if shortage is not None and not self._told_low:
            message = (
                f"{run.run_dir}: the next checkpoint will not fit: it {shortage}; make room (`loopcoder checkpoint "
                "list RUN` shows what it holds, or checkpoint.keep_last) or it is not written"
            )
            run.metrics.event("disk_low", run.state.step, message, **asdict(shortage))
            run.console.note(f"WARNING: {message}")
        self._told_low = shortage is not None

    def _retention(self) -> dict[str, int | None]:
        return {"keep_last": self._config.keep_last, "keep_every_steps": self._config.keep_every_steps}

    def _last_good(self) -> str:
        return f"step {self._saved_at}" if self._saved_at else "none"
