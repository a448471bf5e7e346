"""The training loop: batch, learning rate, engine step, hooks.

Everything that is not one of these four is a hook, called in the order of the list on every rank. Hooks that decide
whether a step may be made come first, the one that saves comes last.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from loopcoder_train.engines.engine import Engine, StepResult
from loopcoder_train.runtime.heartbeat import enter
from loopcoder_train.training.accounts import Accounts
from loopcoder_train.training.batch import NumpyBatch, to_micro_batch
from loopcoder_train.training.metrics import Metrics
from loopcoder_train.training.progress import Console
from loopcoder_train.training.state import TrainingState
from loopcoder_train.training.step_history import StepHistory


@dataclass(slots=True)
class Step:
    """One optimizer step, made or refused; losses and norms are equal on every rank."""

    number: int  # from 1; of a refused step: the number that it would have got
    made: bool  # whether the weights were changed
    learning_rate: float
    loss: float  # nats per supervised token of the global batch
    grad_norm: float
    supervised_tokens: int  # of the global batch
    tokens: int  # positions of the global batch
    batches: Sequence[NumpyBatch]  # this rank's part
    data_wait_seconds: float  # this rank's
    seconds: float  # wait and computation, hooks excluded


@dataclass(slots=True)
class Run:
    """What a training loop needs and what its hooks may read. `state` is updated before the hooks see a step."""

    run_dir: Path
    engine: Engine
    data: Iterator[Sequence[NumpyBatch]]  # this rank's micro-batches, batch by batch, from `state.batches` on
    learning_rate: Callable[[int], float]  # of the tokens trained at the end of a step
    num_steps: int
    batch_tokens: Callable[[int], int]  # positions of a global batch, by its number in the stream
    metrics: Metrics = field(default_factory=Metrics)  # writes on rank 0, does nothing elsewhere
    console: Console = field(default_factory=Console)  # likewise
    state: TrainingState = field(default_factory=TrainingState)
    history: StepHistory = field(default_factory=StepHistory)  # kept by whoever judges steps, saved with `state`
    stop_after_step: int | None = None  # stop here although the schedule runs to num_steps
    stop_reason: str | None = None  # set by a hook, on every rank at the same step, to end the run cleanly
    accounts: Accounts = field(default_factory=Accounts)  # of the time; by default the run begins now
    save_seconds: float | None = None  # how long the last save took; None before the first of this attempt

    @property
    def last_step(self) -> int:
        """The step this attempt ends with unless something stops it earlier."""
        return self.num_steps if self.stop_after_step is None else min(self.num_steps, self.stop_after_step)


class Hook:
    """Something that happens around steps. Every rank calls every method of every hook in the same order.

    `doing`: what it does, in the words of the watchdog.
    """

    doing = "a hook"

    def on_start(self, run: Run) -> None:
        """Before the first step of this attempt."""

    def accepts(self, run: Run, result: StepResult) -> bool:
        """Before the update of each step: may it be made? Must be answered alike on every rank."""
        return True

    def after_step(self, run: Run, step: Step) -> None:
        """After each optimizer step."""

    def after_bad_step(self, run: Run, step: Step) -> None:
        """Instead, after a step whose update was refused. A hook before this one may have gone back to a checkpoint,
        so that `run.state.step` is less than it was."""

    def on_stop(self, run: Run) -> None:
        """After the last step, when the run ends without an error: finished, stopped after a step, or asked to stop."""

    def close(self) -> None:
        """Always last, also after an error: release what is local. No collective belongs here."""


def fit(run: Run, hooks: Sequence[Hook]) -> TrainingState:
    """Train from `run.state.step` to `run.last_step` and return the final state."""
    try:
        for hook in hooks:
            enter(f"{hook.doing} at the start", part="hooks")
            hook.on_start(run)
        while run.state.step < run.last_step and run.stop_reason is None:
            step = train_one_step(run, hooks)
            for hook in hooks:
                enter(f"{hook.doing} after step {step.number}")
                if step.made:
                    hook.after_step(run, step)
                else:
                    hook.after_bad_step(run, step)
        for hook in hooks:
            enter(f"{hook.doing} at the end")
            hook.on_stop(run)
    finally:
        for hook in hooks:
            hook.close()
    return run.state


def train_one_step(run: Run, hooks: Sequence[Hook]) -> Step:
    """The next batch, its learning rate, one optimizer step if every hook accepts it; advances `run.state`."""
    started = time.perf_counter()
    enter(f"step {run.state.step + 1}, waiting for data", part="first_batch")
    batches, tokens = next(run.data), run.batch_tokens(run.state.batches)
    arrived = time.perf_counter()
    enter(f"step {run.state.step + 1}, forward, backward and update", part="first_step")
    learning_rate = run.learning_rate(run.state.tokens + tokens)
    result = run.engine.train_step(
        [to_micro_batch(batch) for batch in batches],
        learning_rate,
        accept=lambda result: all(hook.accepts(run, result) for hook in hooks),
    )
    seconds = time.perf_counter() - started
    number = run.state.step + 1
    run.state.running_seconds = run.accounts.running_seconds
    if result.updated:
        run.state.kept_seconds += seconds
        run.state.step += 1
        run.state.tokens += tokens
        run.state.supervised_tokens += result.supervised_tokens
    else:
        run.state.discarded_batches += 1
    return Step(
        number=number,
        made=result.updated,
        learning_rate=learning_rate,
        loss=result.loss,
        grad_norm=result.grad_norm,
        supervised_tokens=result.supervised_tokens,
        tokens=tokens,
        batches=batches,
        data_wait_seconds=arrived - started,
        seconds=seconds,
    )
