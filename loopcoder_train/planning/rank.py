"""One rank of a pipeline stage in numbers: its rows, widths and layers, and the kernels whose memory it has.

    rows of a micro-batch   whole = B S           K1 and V1 under context parallelism
                            inner = whole / C     inside the parallel linears and attention
                            outer = inner / T     between them, under sequence parallelism; else = inner

Widths are this tensor rank's: query = H D / T, kv = G D / T, mlp = I / T, vocab = V / T.
"""

from dataclasses import dataclass
from enum import Enum

from loopcoder_train.config import (
    ActivationCheckpointing,
    Device,
    GlobalKernel,
    KernelConfig,
    LocalKernel,
    ModelConfig,
    Precision,
    RunConfig,
)

FP32_BYTES = 4
ELEMENT_BYTES = {Precision.fp32: 4, Precision.bf16: 2}


class AttentionMemory(Enum):
    """What an attention kernel keeps for its backward pass."""

    flash = "flash"  # q, k, v, output and one fp32 number per head and row
    fused = "fused"  # the same, with keys and values repeated for every query head
    written_out = "written_out"  # the probabilities of every query and key, in fp32 and in bf16


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernels:
    """Which kernels' memory is planned for: those that the engine would choose on that device."""

    on_cuda: bool
    global_attention: AttentionMemory
    local_attention: AttentionMemory
    local_in_blocks: bool  # windows by blocks of queries, each with its own copy of two blocks of keys

    @property
    def fused_norm(self) -> bool:
        """CUDA's RMSNorm keeps its input and one number per row; elsewhere torch composes it of fp32 operations."""
        return self.on_cuda


def plan_kernels(config: KernelConfig, device: Device, precision: Precision) -> Kernels:
    """As `model.attention.choose_kernels` would choose on CUDA, or on the CPU when `device` says so.

    `auto` is planned for CUDA: a plan is made before the machine is there.
    """
    on_cuda = device is not Device.cpu
    flash = on_cuda and precision is Precision.bf16
    softmax = AttentionMemory.fused
    if not on_cuda and precision is Precision.bf16:
        softmax = AttentionMemory.written_out
    by_global = {GlobalKernel.auto: AttentionMemory.flash if flash else softmax, GlobalKernel.sdpa: softmax}
    by_local = {
        LocalKernel.auto: AttentionMemory.flash if flash else softmax,
        LocalKernel.sdpa: softmax,
        LocalKernel.block_window: softmax,
    }
    blocks = config.local_attention is LocalKernel.block_window or (
        config.local_attention is LocalKernel.auto and not flash
    )
    return Kernels(
        on_cuda=on_cuda,
        global_attention=by_global.get(config.global_attention, AttentionMemory.flash),
        local_attention=by_local.get(config.local_attention, AttentionMemory.flash),
        local_in_blocks=blocks,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank:
    """Sizes of one rank of pipeline stage `stage`. Rows are of one micro-batch."""

    model: ModelConfig
    kernels: Kernels
    checkpointing: ActivationCheckpointing
    element_bytes: int  # of weights and activations
    tensor: int
    pipeline: int
    context: int
    data: int
    sequence_parallel: bool
    distributed_optimizer: bool
    stage: int
    num_layers: int
    micro_batch_size: int
    sequence_length: int
    micro_batches: int  # per data-parallel rank and step

    @property
    def is_first(self) -> bool:
        """Has the embedding."""
        return self.stage == 0

    @property
    def is_last(self) -> bool:
        """Has the final norm and the head."""
        return self.stage == self.pipeline - 1

    @property
    def whole_rows(self) -> int:
        """w: rows of one micro-batch."""
        return self.micro_batch_size * self.sequence_length

    @property
    def inner_rows(self) -> int:
        """m: this context rank's part of them."""
        return self.whole_rows // self.context

    @property
    def outer_rows(self) -> int:
        """n: what sequence parallelism leaves between the parallel linears."""
        return self.inner_rows // (self.tensor if self.sequence_parallel else 1)

    @property
    def heads(self) -> int:
        """Query heads of this tensor rank."""
        return self.model.num_attention_heads // self.tensor

    @property
    def kv_heads(self) -> int:
        """Its key and value heads."""
        return self.model.num_key_value_heads // self.tensor

    @property
    def query_width(self) -> int:
        """Numbers per row of its queries."""
        return self.heads * self.model.head_dim

    @property
    def kv_width(self) -> int:
        """Numbers per row of its keys, and of its values."""
        return self.kv_heads * self.model.head_dim

    @property
    def mlp_width(self) -> int:
        """Its inner features of the MLP."""
        return self.model.intermediate_size // self.tensor

    @property
    def vocab_width(self) -> int:
        """Its rows of the embedding and of the head."""
        return self.model.vocab_size // self.tensor

    @property
    def hidden_bytes(self) -> int:
        """Bytes of this rank's rows of one hidden state."""
        return self.outer_rows * self.model.hidden_size * self.element_bytes

    @property
    def shared_kv_bytes(self) -> int:
        """Bytes of K1 and V1 of one layer and micro-batch."""
        return 2 * self.whole_rows * self.kv_width * self.element_bytes

    @property
    def gradient_ranks(self) -> int:
        """Ranks that hold the same weights: data x context."""
        return self.data * self.context


def ranks_of(config: RunConfig) -> list[Rank]:
    """One rank of every pipeline stage of a run, first to last; the others of a stage are like it.

    Of a run of several segments: in the one with the longest sequences.
    """
    parallel, training, layers = config.parallel, config.training, config.model.num_layers
    segment = config.longest_segment
    spans = [parallel.layers_of_stage(layers, stage) for stage in range(parallel.pipeline_parallel_size)]
    return [
        Rank(
            model=config.model,
            kernels=plan_kernels(config.kernels, training.device, training.precision),
            checkpointing=training.activation_checkpointing,
            element_bytes=ELEMENT_BYTES[training.precision],
            tensor=parallel.tensor_parallel_size,
            pipeline=parallel.pipeline_parallel_size,
            context=parallel.context_parallel_size,
            data=parallel.data_parallel_size,
            sequence_parallel=parallel.sequence_parallel,
            distributed_optimizer=parallel.distributed_optimizer,
            stage=stage,
            num_layers=stop - first,
            micro_batch_size=training.micro_batch_size,
            sequence_length=segment.sequence_length,
            micro_batches=segment.global_batch_size // (training.micro_batch_size * parallel.data_parallel_size),
        )
        for stage, (first, stop) in enumerate(spans)
    ]
