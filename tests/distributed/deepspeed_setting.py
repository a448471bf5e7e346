"""The runs, the data and the engines with which the DeepSpeed engine meets the plain one."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import distributed

from loopcoder_train.config import (
    ActivationCheckpointing,
    DeepSpeedConfig,
    EngineKind,
    OptimizerConfig,
    ParallelConfig,
    Precision,
    RunConfig,
    TrainingConfig,
)
from loopcoder_train.engines.deepspeed import ZeroEngine
from loopcoder_train.engines.engine import MicroBatch
from loopcoder_train.engines.plain import PlainEngine
from tests.distributed.deepspeed_cases import ZeroCase
from tests.distributed.megatron_cases import Case
from tests.distributed.megatron_setting import micro_batches, randomize
from tests.distributed.megatron_setting import run_config as megatron_config

CPU = torch.device("cpu")
_SEQUENCES = 4  # of a step
# Several buckets, and nothing that stays gathered but the smallest, even for a tiny model.
SMALL_BUCKETS = {"reduce_bucket_elements": 3000, "gather_bucket_elements": 3000, "max_live_elements": 0}


def plain_config(case: ZeroCase) -> RunConfig:
    """The run on the plain engine, all sequences in one micro-batch."""
    setting = Case(
        kind="", layout="single", num_loops=case.num_loops, gate_input=case.gate_input, tied=case.tied,
        preset="paper" if case.num_loops == 1 else "released",
    )  # fmt: skip
    config = megatron_config(setting, "plain")
    return replace(
        config,
        engine=EngineKind.plain,
        training=TrainingConfig(
            num_steps=10, global_batch_size=_SEQUENCES, micro_batch_size=_SEQUENCES, precision=Precision[case.precision]
        ),
        # weight_decay: large enough that three steps tell what is decayed
        optimizer=OptimizerConfig(peak_lr=1e-3, eps=1e-6, clip_grad_norm=0.5, weight_decay=1.0),
    )


def zero_config(case: ZeroCase) -> RunConfig:
    """The same run under ZeRO."""
    micro, _, ranks = case.split
    plain = plain_config(case)
    return replace(
        plain,
        engine=EngineKind.deepspeed,
        training=replace(
            plain.training,
            micro_batch_size=micro,
            activation_checkpointing=ActivationCheckpointing[case.recompute],
        ),
        parallel=ParallelConfig(data_parallel_size=ranks, overlap_grad_reduce=case.overlap),
        deepspeed=DeepSpeedConfig(
            zero_stage=case.stage,
            offload_optimizer=case.offload != "none",
            offload_parameters=case.offload == "both" and case.stage == 3,
            persistent_elements=0 if case.kind == "memory" else 40,  # else norms stay whole
            **SMALL_BUCKETS,
        ),
    )


def whole_batch(case: ZeroCase, step: int) -> MicroBatch:
    """A step's four sequences, with unequal numbers of supervised tokens."""
    parts = micro_batches(2, case.packed, step)
    return MicroBatch(*(torch.cat([getattr(part, name) for part in parts]) for name in MicroBatch.__slots__))


def own_share(case: ZeroCase, step: int) -> list[MicroBatch]:
    """This rank's micro-batches of that step."""
    (micro, count, _), batch = case.split, whole_batch(case, step)
    first = distributed.get_rank() * micro * count
    cuts = [slice(first + n * micro, first + (n + 1) * micro) for n in range(count)]
    return [MicroBatch(*(getattr(batch, name)[rows] for name in MicroBatch.__slots__)) for rows in cuts]


@contextmanager
def zero_engine(case: ZeroCase) -> Iterator[ZeroEngine]:
    """The engine with random weights."""
    engine = ZeroEngine(zero_config(case), CPU)
    randomize(engine)
    yield engine
    engine.close()


def plain_engine(case: ZeroCase) -> PlainEngine:
    """The yardstick with the same weights."""
    plain = PlainEngine(plain_config(case), CPU)
    randomize(plain)
    return plain
