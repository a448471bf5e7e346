"""The real worker with one fault in it: `python -m tests.faults.worker --config run.yaml`, FAULT=<a JSON object>.

{"kind": "nan", "rank": 1, "batch": 6}   the losses of that rank's last micro-batch of that batch are NaN, on the way
                                         forward and back; "once": true: only in the first attempt of the run_dir
"""

import json
import os
import sys
from pathlib import Path

from loopcoder_train import worker
from loopcoder_train.training import loop

FAULT = json.loads(os.environ["FAULT"])
RANK = int(os.environ["RANK"])


def hits(run) -> bool:
    """Whether the fault happens to this rank now."""
    if FAULT["rank"] != RANK or run.state.batches != FAULT["batch"]:
        return False
    if not FAULT.get("once"):
        return True
    happened = Path(run.run_dir) / "fault_happened"
    first = not happened.exists()
    happened.touch()
    return first


def around_each_step(step_with_fault) -> None:
    """Let `step_with_fault(train_one_step, run, hooks)` make the steps in which the fault happens."""
    real = loop.train_one_step

    def train_one_step(run, hooks):
        return step_with_fault(real, run, hooks) if hits(run) else real(run, hooks)

    loop.train_one_step = train_one_step


def nan(train_one_step, run, hooks):
    """NaN where this rank's last micro-batch leaves the model."""
    engine = run.engine
    loss_of, micro_batches = engine._loss, run.data._rank_size // run.data._micro_batch_size
    calls = 0

    def loss(labels, hidden):
        nonlocal calls
        calls += 1
        total, tokens, report = loss_of(labels, hidden)
        broken = float("nan") if calls == micro_batches else 1.0
        return total * broken, tokens, report * report.new_tensor([broken, 1.0])

    engine._loss = loss
    try:
        return train_one_step(run, hooks)
    finally:
        engine._loss = loss_of
        assert calls == micro_batches, "the fault did not happen"


if __name__ == "__main__":
    around_each_step({"nan": nan}[FAULT["kind"]])
    sys.exit(worker.main())
