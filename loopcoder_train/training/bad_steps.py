"""Keeps steps whose loss or gradient is not a number, or far above the usual, away from the weights.

First in the list of hooks. Every rank judges the same two numbers by the same history before the update is made, so all
decide alike. A bad step's update is never made; its batch is discarded, which the ledger records, and the run goes on
with the next batch: with the weights it has (skip), with those of the last good checkpoint (rewind), or not at all.

What was decided is in `metrics.jsonl` at once and in every checkpoint. An attempt that repeats steps after a crash
decides the same again: by itself where the cause is in the data or the weights, and otherwise (a bit flipped in
passing) because it reads what the attempt before it recorded.
"""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from data_pipeline.substitutes import SUBSTITUTES_FILE
from loopcoder_train.checkpoint import Ranks
from loopcoder_train.config import GuardsConfig, OnBadStep, UserError
from loopcoder_train.engines.engine import StepResult
from loopcoder_train.training.loop import Hook, Run, Step
from loopcoder_train.training.metrics import METRICS_FILE
from loopcoder_train.training.resume import RunSnapshot
from loopcoder_train.training.step_history import BadStep, Cause, StepHistory, judge

SKIPPED, REWOUND, DIVERGED = "step_skipped", "step_rewound", "diverged"  # events
REPLAYED_BYTES = 1 << 26  # of the end of metrics.jsonl: far more than lies between two checkpoints


class TrainingDivergedError(UserError):
    """Bad steps that the options do not allow to pass over. The same configuration would end in the same place."""


class BadStepHook(Hook):
    """Judges every step; skips, rewinds or stops as `config` says.

    `last_saved(run)`: step of the last good checkpoint, after waiting for one that is being written; 0 without one.
    `load()`: fill the engine from it and return its state. Both are collective. `segment_of(batch)`: which segment of
    the data a batch belongs to; what is usual is learnt anew in each.
    """

    doing = "the judgement"

    def __init__(
        self,
        config: GuardsConfig,
        *,
        last_saved: Callable[[Run], int],
        load: Callable[[], RunSnapshot | None],
        segment_of: Callable[[int], int] = lambda batch: 0,
    ) -> None:
        self._config, self._last_saved, self._load, self._segment_of = config, last_saved, load, segment_of
        self._decided: dict[int, BadStep] = {}
        self._bad: BadStep | None = None
        self._reason = ""

    def on_start(self, run: Run) -> None:
        """Read what an attempt before this one has decided about the batches that are to come."""
        path, first = run.run_dir / METRICS_FILE, run.state.batches
        ranks = Ranks.current()
        decided = ranks.gather(recorded_decisions(path, first) if ranks.rank == 0 else None)[0]
        entries = map(BadStep.from_json, decided)
        self._decided = {entry.batch: entry for entry in entries if self._policy(entry.cause) is not OnBadStep.ignore}

    def accepts(self, run: Run, result: StepResult) -> bool:
        """Whether the update may be made; the judged numbers are the largest of any rank."""
        loss, grad_norm = largest(run, result)
        run.history.enter_segment(self._segment_of(run.state.batches))
        verdict = judge(run.history, self._config, loss, grad_norm)
        if result.supervised_tokens == 0 and math.isfinite(grad_norm):  # the weights are sound, the data is not
            verdict = Cause.unlabelled, f"no token of its batch is supervised{_damage(run.run_dir)}"
        former = self._decided.get(run.state.batches)
        if verdict is None and former is not None:
            verdict = former.cause, "an attempt before this one decided so"
        if verdict is None or self._policy(verdict[0]) is OnBadStep.ignore:
            self._bad = None
            run.history.keep(loss, grad_norm)
            return True
        cause, self._reason = verdict
        self._bad = BadStep(
            batch=run.state.batches,
            step=run.state.step + 1,
            cause=cause,
            loss=loss if math.isfinite(loss) else None,
            grad_norm=grad_norm if math.isfinite(grad_norm) else None,
        )
        return False

    def after_bad_step(self, run: Run, step: Step) -> None:
        """Stop, rewind or skip; record what was done."""
        assert self._bad is not None
        policy = self._policy(self._bad.cause)
        if policy is OnBadStep.stop:
            option = "spike" if self._bad.cause is Cause.spike else "nonfinite"
            self._stop(run, step, f"guards.{option}=stop")
        self._check_caps(run, step)
        if policy is OnBadStep.rewind:
            saved = self._last_saved(run)
            if saved != run.state.step:  # else the weights are the checkpoint's: there is nothing to go back to
                self._rewind(run, step, saved)
                return
        run.history.ledger.append(self._bad)
        self._tell(
            run, SKIPPED, f"step {step.number} was not made: {self._reason}; its batch {self._bad.batch} is skipped"
        )

    def _rewind(self, run: Run, step: Step, saved: int) -> None:
        if saved == 0:
            self._stop(run, step, f"guards.{self._bad.cause.name}=rewind, and no checkpoint was saved yet")
        if run.history.rewinds >= self._config.max_rewinds:
            self._stop(run, step, f"went back guards.max_rewinds={self._config.max_rewinds} times before")
        snapshot = self._load()
        assert snapshot is not None, "the last good checkpoint is gone"
        ledger, made = run.history.ledger, run.state.step
        run.state = run.state.gone_back_to(snapshot.training)
        run.history = StepHistory.from_json(snapshot.history, self._config.history_steps)
        back_to = run.state.step
        run.history.ledger = [*ledger, replace(self._bad, back_to=back_to)]
        message = (
            f"step {step.number} was not made: {self._reason}; back to the checkpoint of step {back_to}, "
            f"{made - back_to} step(s) are undone and their batches up to {self._bad.batch} are skipped"
        )
        self._tell(run, REWOUND, message)

    def _check_caps(self, run: Run, step: Step) -> None:
        """The caps count this step too."""
        config, batch = self._config, self._bad.batch
        in_a_row = run.history.bad_in_a_row(batch) + 1
        if in_a_row > config.max_bad_steps_in_a_row:
            limit = f"guards.max_bad_steps_in_a_row={config.max_bad_steps_in_a_row}"
            self._stop(run, step, f"{in_a_row} bad steps in a row are more than {limit}")
        recent = run.history.bad_since(batch - config.bad_step_window + 1) + 1
        if recent > config.max_bad_steps:
            window = f"{config.bad_step_window} batches are more than guards.max_bad_steps={config.max_bad_steps}"
            self._stop(run, step, f"{recent} bad steps among {window}")

    def _stop(self, run: Run, step: Step, rule: str) -> None:
        what = f"diverged at step {step.number}: {self._reason}, learning rate={step.learning_rate:.3g}"
        remedy = "start a new run with a lower optimizer.peak_lr or a longer schedule.warmup_fraction"
        if self._bad.cause is Cause.unlabelled:
            what, remedy = f"stopped at step {step.number}: {self._reason}", "restore the damaged blocks"
        message = (
            f"training {what} ({rule}); nothing of this step was saved, checkpoints before it are good; {remedy}, or "
            "go on from the last checkpoint with other guards"
        )
        run.metrics.event(DIVERGED, run.state.step, message, bad_step=self._bad.to_json())
        raise TrainingDivergedError(message)

    def _tell(self, run: Run, event: str, message: str) -> None:
        run.metrics.event(event, run.state.step, message, bad_step=run.history.ledger[-1].to_json())
        run.console.note(f"WARNING: {message}")

    def _policy(self, cause: Cause) -> OnBadStep:
        policy = self._config.spike if cause is Cause.spike else self._config.nonfinite
        if cause is Cause.unlabelled and policy is OnBadStep.rewind:  # which would undo good steps, and mend nothing
            return OnBadStep.skip
        return policy


def largest(run: Run, result: StepResult) -> tuple[float, float]:
    """Loss and gradient norm, the largest that any rank has seen; not finite on any rank if not on all.

    They are sums over all ranks and therefore equal, on sound machines. Equal they must be, or ranks would decide
    differently and wait for each other for ever.
    """
    own = (result.loss, result.grad_norm)
    comparable = [value if math.isfinite(value) else math.inf for value in own]  # NaN is neither more nor less
    most = run.engine.max_over_ranks(torch.tensor(comparable, dtype=torch.float64)).tolist()
    loss, grad_norm = (m if math.isfinite(value) else value for value, m in zip(own, most, strict=True))
    return loss, grad_norm


def _damage(run_dir: Path) -> str:
    return f", damaged blocks are in {SUBSTITUTES_FILE}" if (run_dir / SUBSTITUTES_FILE).exists() else ""


def recorded_decisions(path: Path, first_batch: int) -> list[dict[str, Any]]:
    """The ledger entries of `path` (metrics.jsonl) about batches from `first_batch` on, as JSON objects."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - REPLAYED_BYTES))
        lines = [line for line in file if b'"bad_step"' in line]
    found = []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:  # cut off by a kill
            continue
        entry = record.get("bad_step")
        if record.get("event") in (SKIPPED, REWOUND) and entry is not None and entry["batch"] >= first_batch:
            found.append(entry)
    return found
