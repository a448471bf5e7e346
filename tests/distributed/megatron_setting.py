"""The model, the data and the weights on which the Megatron engine meets the plain one."""

import torch
from torch import Tensor, distributed

from loopcoder_train.config import (
    ActivationCheckpointing,
    DataConfig,
    GateInput,
    LoopKind,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    Precision,
    RunConfig,
    TrainingConfig,
)
from loopcoder_train.engines.engine import Engine, MicroBatch
from loopcoder_train.engines.fingerprint import box_fingerprint
from loopcoder_train.engines.plain import PlainEngine
from loopcoder_train.model import IGNORE_INDEX
from loopcoder_train.model.names import parameter_shapes
from loopcoder_train.model.state import MODEL_PREFIX, TensorShard
from loopcoder_train.training.first_weights import weight_fingerprints
from tests.distributed.megatron_cases import PRESETS, Case, layout_of

SEQUENCE_LENGTH, ROWS, VOCAB = 48, 2, 64
# Where documents begin in rows 0, 1, 2, ...: exactly at each seam of two and of four parts (12, 24, 36), and across it.
_STARTS = ([7, 24, 36], [11, 23, 40], [1, 2, 25, 47], [24], [12, 37])


def run_config(case: Case, layout: str | None = None) -> RunConfig:
    """The run of a case under its own or another layout; `layout="plain"` for the plain engine."""
    world_size, parallel = (1, {}) if layout == "plain" else layout_of(layout or case.layout)
    return RunConfig(
        run_dir="unused",
        model=_model(case),
        training=TrainingConfig(
            num_steps=10,
            global_batch_size=ROWS * 2 * case.micro_batches * case.stages,
            micro_batch_size=ROWS,
            precision=Precision[case.precision],
            activation_checkpointing=ActivationCheckpointing[case.recompute],
        ),
        data=DataConfig(sequence_length=SEQUENCE_LENGTH),
        # eps: a gradient that is zero but for rounding must not become a step of full size in the comparison
        optimizer=OptimizerConfig(peak_lr=1e-3, eps=1e-6, clip_grad_norm=0.5 if case.clipped else 0.0),
        parallel=ParallelConfig(world_size=world_size, **parallel),
    )


def _model(case: Case) -> ModelConfig:
    return ModelConfig(
        hidden_size=32,
        intermediate_size=56,
        num_layers=case.num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=10,
        vocab_size=VOCAB,
        num_loops=case.num_loops,
        loop_kind=LoopKind[case.loop_kind],
        window_left=5,
        gate_input=GateInput[case.gate_input],
        tie_embeddings=case.tied,
        rope_theta=1000.0,
        **PRESETS[case.preset],
    )


def micro_batches(count: int, packed: bool, step: int = 0, length: int = SEQUENCE_LENGTH) -> list[MicroBatch]:
    """`count` micro-batches with unequal numbers of supervised tokens."""
    generator = torch.Generator().manual_seed(1000 * step + count)
    return [_micro_batch(generator, index, packed, length) for index in range(count)]


def _micro_batch(generator: torch.Generator, index: int, packed: bool, length: int) -> MicroBatch:
    tokens = torch.randint(0, VOCAB, (ROWS, length + 1), generator=generator)
    document_ids = torch.zeros(ROWS, length, dtype=torch.int64)
    labels = tokens[:, 1:].clone()
    labels[:, length - 1 - 3 * index :] = IGNORE_INDEX
    if packed:
        for row in range(ROWS):
            for start in _STARTS[(index * ROWS + row) % len(_STARTS)]:
                if start < length:
                    document_ids[row, start:] += 1
                    labels[row, start - 1] = IGNORE_INDEX
    return MicroBatch(tokens[:, :-1].contiguous(), labels, document_ids, torch.zeros(ROWS, dtype=torch.int64))


def random_weight(name: str, shape: tuple[int, ...]) -> Tensor:
    """A value that hides nothing: gates and biases far from zero, norms far from one."""
    name = name.removeprefix(MODEL_PREFIX)
    generator = torch.Generator().manual_seed(sum(map(ord, name)) * 7919 + len(name))
    noise = torch.randn(shape, generator=generator)
    if name.endswith("norm.weight"):
        return 1.0 + 0.3 * noise
    if name.endswith(("o_proj.weight", "down_proj.weight")):
        # Small enough that 15 visits in a row do not amplify fp32 rounding itself beyond the tolerance.
        return 0.04 * noise
    return (0.7 if ".plt_gate." in name else 0.15) * noise


def cut(shard: TensorShard, whole: Tensor) -> Tensor:
    """The part of a whole tensor that a shard covers."""
    return whole[tuple(slice(o, o + n) for o, n in zip(shard.offsets, shard.data.shape, strict=True))]


@torch.no_grad()
def load(shards: list[TensorShard], values: dict[str, Tensor]) -> None:
    """Fill the shards whose names are in `values`."""
    for shard in shards:
        if shard.name in values:
            shard.data.copy_(cut(shard, values[shard.name]))


@torch.no_grad()
def randomize(engine) -> None:
    """Give an engine's weights their random values."""
    shards = [shard for shard in engine.state_shards(loading=True) if shard.name.startswith(MODEL_PREFIX)]
    load(shards, {shard.name: random_weight(shard.name, shard.global_shape) for shard in shards})


def weight_fingerprint_faults(engine: Engine, plain: PlainEngine) -> int:
    """Parameters whose fingerprint, read from all ranks of `engine`, is not that of the plain engine's tensor."""
    found = weight_fingerprints(engine, parameter_shapes(plain.config.model))
    expected = {
        shard.name.removeprefix(MODEL_PREFIX): int(box_fingerprint(shard))
        for shard in plain.state_shards(loading=False)
        if shard.name.startswith(MODEL_PREFIX)
    }
    assert found.keys() == expected.keys()
    return sum(found[name] != expected[name] for name in expected)


def gather_state(engine: Engine) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Every whole tensor, put together from what each rank owns, and how often each element was owned."""
    boxes = [(s.name, s.global_shape, s.offsets, s.data.clone()) for s in engine.state_shards(loading=False) if s.owner]
    gathered = [None] * distributed.get_world_size()
    distributed.all_gather_object(gathered, boxes)
    tensors, owners = {}, {}
    for name, shape, offsets, data in (box for rank in gathered for box in rank):
        shard = TensorShard(name, shape, offsets, data)
        cut(shard, tensors.setdefault(name, torch.full(shape, float("nan")))).copy_(data)
        cut(shard, owners.setdefault(name, torch.zeros(shape))).add_(1)
    return tensors, owners
