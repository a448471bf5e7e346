"""Process groups, and this project's configuration in Megatron's words."""

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import distributed

from loopcoder_train.config import ParallelConfig, Precision, RunConfig
from loopcoder_train.runtime.distributed import TIMEOUT_SECONDS

DTYPES = {Precision.fp32: torch.float32, Precision.bf16: torch.bfloat16}

# Parameters per bucket of overlapped gradient reduction; None: Megatron's choice (40M, more on many ranks).
GRAD_BUCKET_SIZE: int | None = None


def initialize_process_groups(parallel: ParallelConfig) -> None:
    """Build Megatron's groups on torch.distributed, which the caller has initialised; groups of the same sizes stay.

    Megatron's extra gloo groups serve its own checkpoint format only, which this project does not use.
    """
    sizes = (parallel.tensor_parallel_size, parallel.pipeline_parallel_size, parallel.context_parallel_size)
    if parallel_state.is_initialized():
        present = (
            parallel_state.get_tensor_model_parallel_world_size(),
            parallel_state.get_pipeline_model_parallel_world_size(),
            parallel_state.get_context_parallel_world_size(),
        )
        if present == sizes:
            return
        leave_process_groups()
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=sizes[0],
        pipeline_model_parallel_size=sizes[1],
        context_parallel_size=sizes[2],
        create_gloo_process_groups=False,
        distributed_timeout_minutes=round(TIMEOUT_SECONDS / 60),
    )


def leave_process_groups() -> None:
    """End Megatron's groups; torch.distributed stays the caller's.

    Megatron only forgets them: each gloo group would leave its threads behind, which poll.
    """
    for group in parallel_state._global_process_group_list or ():
        if group is not None:  # the list begins with one
            distributed.destroy_process_group(group)
    parallel_state.destroy_model_parallel()


def transformer_config(config: RunConfig) -> TransformerConfig:
    """What Megatron's layers, DDP and schedules read.

    Weights are made on the device and filled by this project (`perform_initialization=False`), so Megatron's random
    number tracker is never used.
    """
    model, parallel, dtype = config.model, config.parallel, DTYPES[config.training.precision]
    chunks = virtual_stages(config)
    result = TransformerConfig(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        ffn_hidden_size=model.intermediate_size,
        num_attention_heads=model.num_attention_heads,
        num_query_groups=model.num_key_value_heads,
        kv_channels=model.head_dim,
        tensor_model_parallel_size=parallel.tensor_parallel_size,
        pipeline_model_parallel_size=parallel.pipeline_parallel_size,
        virtual_pipeline_model_parallel_size=chunks,
        overlap_p2p_comm=chunks is not None,
        batch_p2p_comm=chunks is None,
        batch_p2p_sync=False,  # for torch before 1.10
        context_parallel_size=parallel.context_parallel_size,
        sequence_parallel=parallel.sequence_parallel,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype is torch.bfloat16,
        perform_initialization=False,
        use_cpu_initialization=False,
        calculate_per_token_loss=True,
        gradient_accumulation_fusion=False,  # needs Apex's CUDA extension
        deallocate_pipeline_outputs=False,
        cuda_graph_scope=[],
    )
    refuse_silent_mistakes(result)
    return result


def virtual_stages(config: RunConfig) -> int | None:
    """Chunks of the interleaved schedule, one per loop; None where Megatron's schedule has no chunks."""
    several = config.parallel.pipeline_parallel_size > 1 and config.model.num_loops > 1
    return config.model.num_loops if several else None


def refuse_silent_mistakes(config: TransformerConfig) -> None:
    """AssertionError for settings with which Megatron 0.16 trains something else without a word."""
    interleaved = config.virtual_pipeline_model_parallel_size is not None
    assert not config.deallocate_pipeline_outputs, (
        "deallocate_pipeline_outputs frees what is still being sent (gloo): wrong loss or NaN; leave it off"
    )
    assert not interleaved or config.overlap_p2p_comm, (
        "batch_p2p_comm with loops as virtual stages swaps messages between two ranks; set overlap_p2p_comm"
    )


def ddp_config(parallel: ParallelConfig) -> DistributedDataParallelConfig:
    """Gradients are summed in fp32 over data-parallel ranks; the division by tokens comes after."""
    return DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        overlap_grad_reduce=parallel.overlap_grad_reduce,
        overlap_param_gather=parallel.overlap_param_gather,
        use_distributed_optimizer=parallel.distributed_optimizer,
        bucket_size=GRAD_BUCKET_SIZE,
    )


def optimizer_config(config: RunConfig) -> MegatronOptimizerConfig:
    """Decoupled AdamW on fp32 masters."""
    options, dtype = config.optimizer, DTYPES[config.training.precision]
    return MegatronOptimizerConfig(
        optimizer="adam",
        lr=options.peak_lr,
        weight_decay=options.weight_decay,
        adam_beta1=options.beta1,
        adam_beta2=options.beta2,
        adam_eps=options.eps,
        decoupled_weight_decay=True,
        clip_grad=options.clip_grad_norm,
        bf16=dtype is torch.bfloat16,
        params_dtype=dtype,
        use_distributed_optimizer=config.parallel.distributed_optimizer,
        overlap_param_gather=config.parallel.overlap_param_gather,
    )
