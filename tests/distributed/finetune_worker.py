"""Started by torchrun: loss and gradients of one batch of conversations, for every layout of its world size.

torchrun --nproc-per-node 2 -m tests.distributed.finetune_worker --run-dir RUN --output FOLDER
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import distributed

from loopcoder_train.config import DataConfig, ModelConfig, ParallelConfig, Precision, RunConfig, TrainingConfig
from loopcoder_train.finetune.plan import Plan
from loopcoder_train.finetune.stream import ConversationStream
from loopcoder_train.training.batch import to_micro_batch
from tests.conftest import RELEASED_PRESET

ROWS = 4
LAYOUTS = [(4, 1, 1), (1, 4, 1), (2, 1, 2), (1, 2, 2)]  # micro-batch, accumulation, data parallel


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
        parallel=ParallelConfig(world_size=ranks),
    )


def micro_batches(plan: Plan, micro: int, rank: int, ranks: int) -> list:
    """This rank's part of the first batch."""
    batch = ConversationStream(plan, seed=0, global_batch_size=ROWS).read(0, rank, ranks)
    return [to_micro_batch(batch.rows(start, start + micro)) for start in range(0, len(batch), micro)]


def main() -> None:
    """Writes FOLDER/<layout>.npz: `loss`, `tokens` and every gradient by its parameter's name."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--vocab-size", type=int, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    from loopcoder_train.engines.megatron import MegatronEngine
    from tests.distributed.megatron_setting import randomize

    plan, rank, ranks = Plan.open(arguments.run_dir), distributed.get_rank(), distributed.get_world_size()
    for layout in LAYOUTS:
        micro, accumulation, data_parallel = layout
        if data_parallel != ranks:
            continue
        engine = MegatronEngine(run_config(plan, micro, ranks, arguments.vocab_size), torch.device("cpu"))
        randomize(engine)
        batches = micro_batches(plan, micro, rank, ranks)
        assert len(batches) == accumulation
        loss, tokens = engine.forward_backward(batches)
        gradients = {shard.name: shard.data.numpy() for shard in engine.gradient_shards()}
        if rank == 0:
            np.savez(arguments.output / f"{'-'.join(map(str, layout))}.npz", loss=loss, tokens=tokens, **gradients)
        engine.close()
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
