"""Started by torchrun: loss and gradients of one batch of conversations, for every layout of its world size.

torchrun --nproc-per-node 2 -m tests.distributed.finetune_worker --run-dir RUN --output FOLDER
"""

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, distributed

from loopcoder_train.config import (
    DataConfig,
    DeepSpeedConfig,
    EngineKind,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    Precision,
    RunConfig,
    TrainingConfig,
)
from loopcoder_train.engines.engine import MicroBatch
from loopcoder_train.finetune.plan import Plan
from loopcoder_train.finetune.stream import ConversationStream
from loopcoder_train.model.state import FIRST_MOMENT_PREFIX
from loopcoder_train.training.batch import to_micro_batch
from tests.conftest import RELEASED_PRESET
from tests.distributed.megatron_setting import gather_state, randomize

ROWS = 4
LAYOUTS = [(4, 1, 1), (1, 4, 1), (2, 1, 2), (1, 2, 2)]  # micro-batch, accumulation, data parallel
STAGES = (1, 3)  # of ZeRO
Layout = tuple[int, int, int]


def run_config(plan: Plan, micro: int, ranks: int, vocab_size: int) -> RunConfig:
    """A small PLT in fp32."""
    model = ModelConfig(
        hidden_size=32,
        intermediate_size=56,
        num_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=10,
        vocab_size=vocab_size,
        window_left=5,
        **RELEASED_PRESET,
    )
    return RunConfig(
        run_dir="unused",
        model=model,
        training=TrainingConfig(num_steps=10, global_batch_size=ROWS, micro_batch_size=micro, precision=Precision.fp32),
        data=DataConfig(sequence_length=plan.sequence_length),
        optimizer=OptimizerConfig(clip_grad_norm=0.0),  # ZeRO's gradients are read from the moments that follow them
        parallel=ParallelConfig(world_size=ranks),
    )


def micro_batches(plan: Plan, micro: int, rank: int, ranks: int) -> list[MicroBatch]:
    """This rank's part of the first batch."""
    batch = ConversationStream(plan, seed=0, global_batch_size=ROWS).read(0, rank, ranks)
    return [to_micro_batch(batch.rows(start, start + micro)) for start in range(0, len(batch), micro)]


def megatron_pass(config: RunConfig, batches: list[MicroBatch]) -> tuple[float, int, dict[str, Tensor]]:
    """Loss, supervised tokens, and gradients by name."""
    from loopcoder_train.engines.megatron import MegatronEngine

    engine = MegatronEngine(config, torch.device("cpu"))
    randomize(engine)
    loss, tokens = engine.forward_backward(batches)
    gradients = {shard.name: shard.data.clone() for shard in engine.gradient_shards()}
    engine.close()
    return loss, tokens, gradients


def zero_pass(config: RunConfig, batches: list[MicroBatch]) -> tuple[float, int, dict[str, Tensor]]:
    """The same under ZeRO, which has no gradients to show: a step of size 0 leaves 1 - beta1 of them as first moments.

    Buckets are small, so that there are several, and under stage 3 even norms are split.
    """
    from loopcoder_train.engines.deepspeed import ZeroEngine

    engine = ZeroEngine(config, torch.device("cpu"))
    randomize(engine)
    result = engine.train_step(batches, 0.0)
    assert result.updated
    moments = {
        name.removeprefix(FIRST_MOMENT_PREFIX): tensor / (1 - config.optimizer.beta1)
        for name, tensor in gather_state(engine)[0].items()
        if name.startswith(FIRST_MOMENT_PREFIX)
    }
    engine.close()
    return result.loss, result.supervised_tokens, moments


def zero_config(config: RunConfig, stage: int) -> RunConfig:
    """The run under ZeRO."""
    small = {"reduce_bucket_elements": 3000, "gather_bucket_elements": 3000, "max_live_elements": 0}
    zero = DeepSpeedConfig(zero_stage=stage, persistent_elements=0, **small)
    return replace(config, engine=EngineKind.deepspeed, deepspeed=zero)


def name_of(engine: str, layout: Layout) -> str:
    """The file of an engine (`megatron`, `zero1`, ...) and a layout."""
    return f"{engine}-{'-'.join(map(str, layout))}.npz"


def main() -> None:
    """Writes FOLDER/<engine>-<layout>.npz: `loss`, `tokens` and every gradient by its parameter's name."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--vocab-size", type=int, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    # After the processes have met, and Megatron first, as in deepspeed_worker.py. A worker never has two engines.
    import loopcoder_train.engines.megatron  # noqa: I001
    import loopcoder_train.engines.deepspeed  # noqa: F401

    plan, rank, ranks = Plan.open(arguments.run_dir), distributed.get_rank(), distributed.get_world_size()
    for layout in (layout for layout in LAYOUTS if layout[2] == ranks):
        config = run_config(plan, layout[0], ranks, arguments.vocab_size)
        batches = micro_batches(plan, layout[0], rank, ranks)
        assert len(batches) == layout[1]
        passes = {"megatron": partial(megatron_pass, config)}
        passes |= {f"zero{stage}": partial(zero_pass, zero_config(config, stage)) for stage in STAGES}
        for engine, function in passes.items():
            loss, tokens, gradients = function(batches)
            if rank == 0:
                np.savez(arguments.output / name_of(engine, layout), loss=loss, tokens=tokens, **gradients)
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
