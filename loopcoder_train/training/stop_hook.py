"""Ends a run that was asked to stop: all ranks at the same step, with one checkpoint, telling why.

A request (`runtime/signals.py`) reaches any rank at any moment; what is done about it is decided together, because a
rank that stopped alone would leave the others waiting in a collective. One small collective after each step, and before
each forward pass of an evaluation, asks everybody. So from a request to the end of the process it takes at most the
rest of one step (or one forward pass) and one save.
"""

import time

import torch

from loopcoder_train.engines.engine import Engine
from loopcoder_train.runtime.signals import StopCause, StopRequests
from loopcoder_train.training.loop import Hook, Run, Step
from loopcoder_train.training.metrics import METRICS_FILE, last_event
from loopcoder_train.training.stop_deadline import Deadline

_MAX_RANKS = 2**20  # cause and rank travel as one number, exact in float64


class StopAgreement:
    """What all ranks agreed on. Every rank makes one and asks it in the same places.

    `deadline`: on rank 0 only, None when there is no time limit.
    """

    def __init__(self, requests: StopRequests, engine: Engine, rank: int, deadline: Deadline | None) -> None:
        self.deadline = deadline
        self._requests, self._engine, self._rank = requests, engine, rank
        self.cause: StopCause | None = None
        self.rank: int | None = None  # one of those that were asked for this cause
        self.seconds_waiting = 0.0  # from the first request to the agreement
        self.agreed_at = 0.0  # of time.monotonic

    def reached(self) -> bool:
        """Whether the run shall stop; the same answer on every rank. A collective until it says yes."""
        if self.cause is None:
            if self.deadline is not None and self.deadline.is_near():
                self._requests.ask(StopCause.time_limit)
            cause = self._requests.cause
            own = [cause * _MAX_RANKS + self._rank if cause else 0, self._requests.seconds_waiting]
            told, waiting = self._engine.max_over_ranks(torch.tensor(own, dtype=torch.float64)).tolist()
            if told:
                cause, self.rank = divmod(int(told), _MAX_RANKS)
                self.cause, self.seconds_waiting, self.agreed_at = StopCause(cause), waiting, time.monotonic()
        return self.cause is not None

    @property
    def reason(self) -> str:
        """For people; once agreed."""
        at_rank = "" if self.cause is StopCause.time_limit else f" to rank {self.rank}"
        return f"{self.cause.text}{at_rank}"


class StopHook(Hook):
    """Sets `run.stop_reason` once the ranks agree. Last in the list: a save that a step asks for comes first."""

    def __init__(self, agreement: StopAgreement) -> None:
        self._agreement = agreement

    def on_start(self, run: Run) -> None:
        """A request that came while this attempt was starting is a stop before its first step.

        Raises UserError when the time limit leaves no time for a step.
        """
        deadline = self._agreement.deadline
        if deadline is not None:
            saved = last_event(run.run_dir / METRICS_FILE, "saved")  # of a former attempt
            deadline.save_seconds = float(saved["save_seconds"]) if saved else None
            if run.state.step < run.last_step:
                deadline.require_a_step()
        self._decide(run)

    def after_step(self, run: Run, step: Step) -> None:
        """Ask everybody."""
        deadline = self._agreement.deadline
        if deadline is not None:
            deadline.add_step(step.seconds)
            deadline.save_seconds = run.save_seconds or deadline.save_seconds
        self._decide(run)

    def on_stop(self, run: Run) -> None:
        """The last checkpoint is safe: tell how long it took."""
        agreement, step = self._agreement, run.state.step
        if agreement.cause is None:
            return
        saving = time.monotonic() - agreement.agreed_at
        cause = self.cause_of_the_end(run)
        run.metrics.event(
            "asked_to_stop",
            step,
            f"{agreement.reason}: stopped after step {step}, {agreement.seconds_waiting + saving:.1f} s after that",
            cause=agreement.cause.name,
            rank=agreement.rank,
            seconds_to_agreement=agreement.seconds_waiting,
            seconds_to_end=saving,
            exit_code=cause.exit_code if cause else 0,
        )
        rest = "the same command continues" if cause else "it is finished"
        run.console.note(f"{agreement.reason}: saved and stopped after step {step} of {run.num_steps}; {rest}")

    def cause_of_the_end(self, run: Run) -> StopCause | None:
        """Why the run ended before it was done; None when it was done, or paused where its options say."""
        done = run.state.step >= run.num_steps and not run.state.evaluation_owed
        return None if done else self._agreement.cause

    def _decide(self, run: Run) -> None:
        if run.stop_reason is None and self._agreement.reached():
            run.stop_reason = self._agreement.reason
