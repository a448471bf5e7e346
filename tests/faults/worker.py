"""The real worker with one fault in it: `python -m tests.faults.worker --config run.yaml`, FAULT=<a JSON object>.

{"kind": "nan", "rank": 1, "batch": 6}   the losses of that rank's last micro-batch of that batch are NaN, on the way
                                         forward and back; "once": true: only in the first attempt of the run_dir
{"kind": "flip", "rank": 1, "batch": 6, "tensor": "model/..."}   after that batch's step, one bit of one element of this
                                         rank's copy of the tensor flips
{"kind": "hang", "rank": 1, "batch": 6}   that rank waits for ever before that batch's step, its threads go on
{"kind": "slow", "rank": 1, "batch": 6}   that rank takes half a second longer for every micro-batch from then on
{"kind": "wrong_sum", "rank": 1, "batch": 6}   that rank's gradients of that batch's step come out differently each time
"""

import itertools
import json
import os
import sys
import threading
import time
from pathlib import Path

import torch

from loopcoder_train import worker
from loopcoder_train.runtime.heartbeat import enter
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
    data = run.data
    rows = data._stream.segments[0].global_batch_size // data._num_ranks
    loss_of, micro_batches = engine._loss, rows // data._micro_batch_size
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


def flip(train_one_step, run, hooks):
    """The lowest bit of one element: nothing that a loss would show."""
    step = train_one_step(run, hooks)
    tensor = dict(run.engine.replicated_tensors())[FAULT["tensor"]]
    words = tensor.detach().reshape(-1).view({2: torch.int16, 4: torch.int32}[tensor.element_size()])
    words[17] ^= 1
    return step


def wrong_sum(train_one_step, run, hooks):
    """A core that adds wrongly now and then."""
    step = train_one_step(run, hooks)
    gradients, passes = run.engine._run_loops, itertools.count(1)

    def run_schedule(micro_batches, *, reduce=True):
        reports = gradients(micro_batches, reduce=reduce)
        next(iter(run.engine._layout)).main_grad.view(-1)[0] += next(passes)
        return reports

    run.engine._run_loops = run_schedule
    return step


def hang(train_one_step, run, hooks):
    """As a file system that does not answer."""
    enter(f"step {run.state.step + 1}, waiting for data")
    threading.Event().wait()


def slow(train_one_step, run, hooks):
    """As a core that has become hot."""
    engine, loss_of = run.engine, run.engine._loss

    def loss(labels, hidden):
        time.sleep(0.5)
        return loss_of(labels, hidden)

    engine._loss = loss
    return train_one_step(run, hooks)


FAULTS = {"nan": nan, "flip": flip, "wrong_sum": wrong_sum, "hang": hang, "slow": slow}

if __name__ == "__main__":
    around_each_step(FAULTS[FAULT["kind"]])
    sys.exit(worker.main())
