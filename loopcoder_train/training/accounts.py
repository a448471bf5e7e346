"""What became of the time of a run: the share of it that its weights are made of.

kept: steps that these weights are made of, from waiting for the batch to the update. What hooks do (evaluation,
saving), steps that were refused, and steps that a crash or a rewind undid are not in it: `TrainingState.kept_seconds`
is saved with the weights and goes back with them.
elapsed: since the first attempt began, whether anybody was running or not.
running: the part of it in which an attempt was. A killed one counts up to its last line in metrics.jsonl.

Rank 0's clock counts. What was spent before this attempt is in the checkpoint and, newer, at the end of metrics.jsonl.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from loopcoder_train.runtime.start_clock import StartClock
from loopcoder_train.training.metrics import Record
from loopcoder_train.training.state import TrainingState

EFFECTIVE, EFFECTIVE_RUNNING = "effective_training_share", "effective_training_share_running"


@dataclass(frozen=True, slots=True)
class Accounts:
    """first_began: of the first attempt, Unix seconds; running_before: seconds of the attempts before this one; began:
    of this one, on the clock of `time.monotonic`."""

    first_began: float = field(default_factory=time.time)
    running_before: float = 0.0
    began: float = field(default_factory=time.monotonic)

    @property
    def running_seconds(self) -> float:
        """How long an attempt was running so far."""
        return self.running_before + time.monotonic() - self.began

    @property
    def elapsed_seconds(self) -> float:
        """Since the first attempt began. Never less than what was running, whoever sets the clock of the day."""
        return max(time.time() - self.first_began, self.running_seconds)

    def spent(self) -> dict[str, float]:
        """What the next attempt reads (:func:`open_accounts`); part of every train record and of the first event."""
        return {
            "elapsed_seconds": round(self.elapsed_seconds, 3),
            "running_seconds": round(self.running_seconds, 3),
        }

    def metrics(self, kept_seconds: float) -> dict[str, float]:
        """The keys of a train record. Both shares lie between 0 and 1."""
        return {
            EFFECTIVE: kept_seconds / self.elapsed_seconds,
            EFFECTIVE_RUNNING: kept_seconds / self.running_seconds,
            "kept_seconds": round(kept_seconds, 3),
            **self.spent(),
        }


def open_accounts(state: TrainingState, newest: Iterable[Record], clock: StartClock) -> Accounts:
    """The accounts of an attempt that goes on from `state` and began with `clock`.

    `newest`: the last records of the attempts before this one, newest first. Either source may be missing: before the
    first checkpoint there is only the record, and of a record that was moved away only what the checkpoint knows is
    left. Where neither says anything, the life of the run begins with this attempt.
    """
    began = time.time() - (time.monotonic() - clock.began)
    first_began = began if state.first_began is None else state.first_began
    running = state.running_seconds
    last = None
    for record in newest:
        last = last or record
        if "running_seconds" in record and "elapsed_seconds" in record:
            first_began = min(first_began, record["time"] - record["elapsed_seconds"])
            # The attempt that told was still there when it wrote its last line; another one's says nothing about it.
            there = last["time"] - record["time"] if last["attempt"] == record["attempt"] else 0.0
            running = max(running, record["running_seconds"] + max(0.0, there))
            break
    return Accounts(first_began, running, clock.began)
