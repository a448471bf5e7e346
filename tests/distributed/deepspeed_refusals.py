"""A step in which the loss of one micro-batch is infinite: it is not made, and is as if it had never been tried."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from torch import Tensor, distributed

from loopcoder_train.engines.deepspeed import ZeroEngine
from loopcoder_train.engines.deepspeed import engine as engine_module
from loopcoder_train.engines.engine import StepResult, accept_every_step
from tests.distributed.deepspeed_cases import ZeroCase
from tests.distributed.deepspeed_setting import own_share, zero_engine

_token_losses = engine_module.token_losses


def infinite(case: ZeroCase) -> dict[str, float]:
    """Three infinite steps between the first and the second step of an engine that had made both without them.

    Faults by kind: `made`, infinite steps made or the good one not; `finite`, results that hide it; `trace`, tensors
    of weights and moments that such a step has changed by a bit; `next`, those and results of the second step.
    """
    faults = dict.fromkeys(("made", "finite", "trace", "next"), 0)
    with zero_engine(case) as engine:
        engine.train_step(own_share(case, 0), 1e-3)
        before, scalars = _copies(engine, loading=True), engine.state_scalars()
        expected, after = engine.train_step(own_share(case, 1), 1e-3), _held(engine)
        for shard, value in zip(engine.state_shards(loading=True), before, strict=True):
            shard.data.copy_(value)
        engine.load_state_scalars(scalars)
        untouched = _held(engine)
        first, last, ranks = 0, case.split[1] - 1, distributed.get_world_size()
        # DeepSpeed's own refusal before the judge's: what is left by either meets a step that follows.
        for rank, position, accept in (
            (ranks - 1, first, accept_every_step),
            (0, last, _as_the_training_loop),
            (ranks - 1, first, _as_the_training_loop),
        ):
            with _infinite_loss(rank, position):
                result = engine.train_step(own_share(case, 7), 1e-2, accept)
            faults["made"] += result.updated
            faults["finite"] += math.isfinite(result.loss) + math.isfinite(result.grad_norm)
            faults["trace"] += _differing(_held(engine), untouched) + (engine.state_scalars() != scalars)
        result = engine.train_step(own_share(case, 1), 1e-3)
        faults["made"] += not result.updated
        faults["next"] += _differing(_held(engine), after) + (result != expected)
    return faults


def _as_the_training_loop(result: StepResult) -> bool:
    """What the training loop answers where guards.nonfinite is not `ignore`."""
    return math.isfinite(result.loss) and math.isfinite(result.grad_norm)


@contextmanager
def _infinite_loss(rank: int, position: int) -> Iterator[None]:
    """Token losses, and what flows back from them, times infinity in this rank's micro-batch number `position`."""
    calls: list[bool] = []

    def spoilt(logits: Tensor, labels: Tensor) -> Tensor:
        losses = _token_losses(logits, labels)
        calls.append((distributed.get_rank(), len(calls)) == (rank, position))
        return torch.where(losses > 0, losses * math.inf, losses) if calls[-1] else losses

    with mock.patch.object(engine_module, "token_losses", spoilt):
        yield
    assert sum(calls) == (distributed.get_rank() == rank)


def _copies(engine: ZeroEngine, *, loading: bool) -> list[Tensor]:
    return [shard.data.clone() for shard in engine.state_shards(loading=loading)]


def _held(engine: ZeroEngine) -> list[Tensor]:
    """Masters, moments and, in stages 1 and 2, live weights; looking changes nothing, as loading would in stage 3."""
    return _copies(engine, loading=False) + [tensor.clone() for _, tensor in engine.replicated_tensors()]


def _differing(one: list[Tensor], other: list[Tensor]) -> int:
    return sum(not torch.equal(a, b) for a, b in zip(one, other, strict=True))
