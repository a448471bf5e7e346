"""Which layouts a run may have: every rule names option, value, rule and a value that works."""

import dataclasses
import re

import pytest

from loopcoder_train.config import (
    ActivationCheckpointing,
    DataConfig,
    DeepSpeedConfig,
    EngineKind,
    ModelConfig,
    ParallelConfig,
    RunConfig,
    TrainingConfig,
    UserError,
)

SEVEN_BILLION = ModelConfig(
    hidden_size=5120,
    intermediate_size=27648,
    num_layers=14,
    num_attention_heads=40,
    num_key_value_heads=8,
    head_dim=128,
    vocab_size=76800,
)


def run(*, sequence_length=4096, global_batch_size=64, micro_batch_size=1, num_loops=2, window_left=64, **parallel):
    return RunConfig(
        run_dir="r",
        model=dataclasses.replace(SEVEN_BILLION, num_loops=num_loops, window_left=window_left),
        training=TrainingConfig(num_steps=1, global_batch_size=global_batch_size, micro_batch_size=micro_batch_size),
        data=DataConfig(sequence_length=sequence_length),
        parallel=ParallelConfig(**parallel),
    )


# wrong options -> what the message says, and the options that it tells to try
REFUSED = [
    ({"pipeline_parallel_size": 15, "num_loops": 1}, "parallel.pipeline_parallel_size=15: must not exceed", "try 14"),
    (
        {"pipeline_parallel_size": 4, "global_batch_size": 2},
        "training.global_batch_size=2: must be a multiple",
        "try 4",
    ),
    ({"pipeline_parallel_size": 4, "global_batch_size": 6}, "= 4: the 2 loops take turns on the 4 stages", "try 8"),
    (
        {"pipeline_parallel_size": 4, "world_size": 8, "micro_batch_size": 2, "global_batch_size": 40},
        "parallel.pipeline_parallel_size = 16",
        "try 48",
    ),
    ({"context_parallel_size": 3}, "data.sequence_length=4096: must be divisible by 6", "try 4098"),
    (
        {"context_parallel_size": 2, "tensor_parallel_size": 8, "sequence_parallel": True, "sequence_length": 4080},
        "must be divisible by 32, two chunks for each of parallel.context_parallel_size=2, split over",
        "try 4096",
    ),
    (
        {"tensor_parallel_size": 8, "sequence_parallel": True, "sequence_length": 4095},
        "divisible by 8, split",
        "try 4096",
    ),
    (
        {"context_parallel_size": 64, "sequence_length": 4096},
        "model.window_left=64: must fit into a chunk",
        "try parallel.context_parallel_size=32",
    ),
    ({"tensor_parallel_size": 3}, "model.num_attention_heads=40: must be divisible", ""),
    ({"sequence_parallel": True}, "parallel.sequence_parallel=True: needs", ""),
    ({"overlap_param_gather": True}, "parallel.overlap_param_gather=True: needs", ""),
    ({"world_size": 6, "tensor_parallel_size": 4}, "parallel.world_size=6: must be a multiple", ""),
]


@pytest.mark.parametrize(("options", "said", "remedy"), REFUSED)
def test_what_cannot_be_is_refused_with_a_value_that_works(options, said, remedy):
    with pytest.raises(UserError) as refusal:
        run(**options)
    message = str(refusal.value)
    assert said in message and remedy in message and "\n" not in message
    if remedy:
        option = re.search(r"try (\S+)=", message)
        name = option[1] if option else re.match(r"(\S+)=", message)[1]
        run(**options | {name.partition(".")[2]: int(re.search(r"try \D*(\d+)", message)[1])})


@pytest.mark.parametrize(
    "options",
    [
        {"pipeline_parallel_size": 4, "num_loops": 1, "global_batch_size": 1},  # plain 1F1B takes any number
        {"pipeline_parallel_size": 14, "global_batch_size": 14},
        {"context_parallel_size": 4, "window_left": 0},
        {"context_parallel_size": 32, "sequence_length": 4096},  # a window of exactly one chunk
        {"context_parallel_size": 64, "num_loops": 1, "sequence_length": 4096},  # no window at all
    ],
)
def test_what_can_be_is_taken(options):
    run(**options)


def test_layers_are_spread_over_the_stages_without_gaps():
    parallel = ParallelConfig(pipeline_parallel_size=4)
    assert [parallel.layers_of_stage(14, stage) for stage in range(4)] == [(0, 4), (4, 8), (8, 11), (11, 14)]
    for layers in range(4, 30):
        spans = [parallel.layers_of_stage(layers, stage) for stage in range(4)]
        assert [index for first, stop in spans for index in range(first, stop)] == list(range(layers))
        assert max(b - a for a, b in spans) - min(b - a for a, b in spans) <= 1


def deepspeed_run(*, checkpointing=ActivationCheckpointing.none, zero=None, **parallel):
    return RunConfig(
        run_dir="r",
        engine=EngineKind.deepspeed,
        model=SEVEN_BILLION,
        training=TrainingConfig(
            num_steps=1, global_batch_size=64, micro_batch_size=1, activation_checkpointing=checkpointing
        ),
        parallel=ParallelConfig(**parallel),
        deepspeed=DeepSpeedConfig(**(zero or {})),
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tensor_parallel_size": 2}, "parallel.tensor_parallel_size=2: engine=deepspeed is data parallel only"),
        ({"pipeline_parallel_size": 2}, "parallel.pipeline_parallel_size=2: engine=deepspeed is data parallel only"),
        ({"context_parallel_size": 2}, "parallel.context_parallel_size=2: engine=deepspeed is data parallel only"),
        ({"distributed_optimizer": True}, "use deepspeed.zero_stage=1, 2 or 3"),
        ({"checkpointing": ActivationCheckpointing.selective}, "is not done by engine=deepspeed; use layer"),
        ({"zero": {"zero_stage": 4}}, "deepspeed.zero_stage=4: must be 1, 2 or 3"),
        ({"zero": {"zero_stage": 2, "offload_parameters": True}}, "needs deepspeed.zero_stage=3"),
        ({"zero": {"gather_bucket_elements": 3}}, "deepspeed.gather_bucket_elements=3: must be even; try 4"),
        ({"zero": {"persistent_elements": -1}}, "deepspeed.persistent_elements=-1: must be 0 or more"),
    ],
)
def test_deepspeed_refuses_what_it_cannot_do(options, said):
    with pytest.raises(UserError, match=re.escape(said)) as error:
        deepspeed_run(**options)
    assert "\n" not in str(error.value)


def test_deepspeed_takes_data_parallel_layouts():
    zero = {"zero_stage": 3, "offload_optimizer": True, "offload_parameters": True}
    config = deepspeed_run(checkpointing=ActivationCheckpointing.layer, zero=zero, world_size=8)
    assert config.parallel.data_parallel_size == 8
