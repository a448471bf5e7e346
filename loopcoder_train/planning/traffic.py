"""Bytes that one rank sends in a step, by kind.

With p ranks and N bytes of the whole tensor, a ring sends N (p-1) / p from every rank in an all-gather or a
reduce-scatter, twice that in an all-reduce; an all-to-all of N bytes per rank sends N (p-1) / p; a message its size.
Small things are counted too: the three all-reduces of the loss, gradients of norms under sequence parallelism.

Rows and widths as in `planning.rank`; h = inner rows x d x element bytes, one hidden state before it is split:

    tensor    each visit    all-reduce h twice forward, twice backward
              with sequence parallelism
                            all-gather h twice, reduce-scatter h twice forward; backward all-gather 4, reduce-scatter 2
              later loops   the gates of all heads: gathered backward, or all-to-all both ways
              embedding, head and loss
    pipeline  forward R M messages to the next stage (last stage: (R-1) M, back to the first), as many backward
    context   loop 1's K1, V1 of each layer gathered once and their gradients scattered once; later loops a window's
              halo to each neighbour; the shift's rows before each stretch
    gradients all-reduce of fp32 gradients over data x context, or reduce-scatter and an all-gather of the weights

Layer recomputation runs a visit's forward exchanges again, but for the last: torch stops recomputing before it.
"""

from dataclasses import dataclass, fields

from loopcoder_train.config import ActivationCheckpointing, GateInput, LoopKind
from loopcoder_train.planning.rank import FP32_BYTES, Rank
from loopcoder_train.planning.weights import stage_parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Bytes sent by one rank per step."""

    tensor: int = 0  # tensor and sequence parallelism
    pipeline: int = 0  # hidden states and their gradients between stages
    context_gather: int = 0  # K1 and V1, and their gradients
    context_halo: int = 0  # windows that reach over the seam
    shift: int = 0  # the rows before each stretch
    gradients: int = 0  # summed over data x context ranks
    weights: int = 0  # gathered after the step (distributed optimizer)

    @property
    def total(self) -> int:
        """All kinds together."""
        return sum(getattr(self, field.name) for field in fields(self))


def ring(size: float, ranks: int) -> float:
    """Bytes sent by each of `ranks` in an all-gather or reduce-scatter of `size` bytes in all."""
    return size * (ranks - 1) / ranks


def step_traffic(rank: Rank) -> Traffic:
    """What this rank sends in one step."""
    count = rank.micro_batches
    return Traffic(
        tensor=round(count * _tensor(rank) + _norm_gradients(rank)),
        pipeline=count * _pipeline(rank),
        context_gather=round(count * _context_gather(rank)),
        context_halo=count * _context_halo(rank),
        shift=round(count * _shift(rank)),
        gradients=round(_gradients(rank)),
        weights=round(_weights(rank)),
    )


def _tensor(rank: Rank) -> float:
    """Tensor parallelism of one micro-batch."""
    if rank.tensor == 1:
        return 0.0
    loops = rank.model.num_loops
    hidden = ring(rank.inner_rows * rank.model.hidden_size * rank.element_bytes, rank.tensor)
    again = rank.checkpointing is ActivationCheckpointing.layer
    # in units of one all-gather: forward 4 (all-reduces count twice), of which recomputation repeats all but the last
    repeated = (3 if rank.sequence_parallel else 2) if again else 0
    visit = 4 + repeated + (6 if rank.sequence_parallel else 4)
    units = loops * rank.num_layers * visit
    if rank.is_first:
        units += 2
    if rank.is_last:
        units += 3 if rank.sequence_parallel else 2
    loss = 3 * 2 * ring(FP32_BYTES * rank.inner_rows, rank.tensor) if rank.is_last else 0.0
    return units * hidden + loss + _gate(rank, again)


def _gate(rank: Rank, again: bool) -> float:
    """The hidden gate's logits of all heads, in later loops."""
    if not rank.model.has_gates or rank.model.gate_input is GateInput.query:
        return 0.0
    size = rank.inner_rows * rank.model.num_attention_heads * rank.element_bytes
    visits = (rank.model.num_loops - 1) * rank.num_layers
    if rank.sequence_parallel:  # every rank has the logits of its rows
        return visits * (3 if again else 2) * ring(size / rank.tensor, rank.tensor)
    return visits * ring(size, rank.tensor)


def _norm_gradients(rank: Rank) -> float:
    """Weights that meet only a rank's own rows: their gradients are all-reduced once a step."""
    if not rank.sequence_parallel:
        return 0.0
    model = rank.model
    per_layer = 2 * model.hidden_size
    if model.has_gates and model.gate_input is GateInput.hidden:
        per_layer += model.hidden_size * (1 + model.num_attention_heads) + model.num_attention_heads
    count = rank.num_layers * per_layer + (model.hidden_size if rank.is_last else 0)
    return 2 * ring(FP32_BYTES * count, rank.tensor)


def _pipeline(rank: Rank) -> int:
    """Messages of one micro-batch, forward and backward."""
    if rank.pipeline == 1:
        return 0
    loops = rank.model.num_loops
    forward = loops - rank.is_last
    backward = loops - rank.is_first
    return (forward + backward) * rank.hidden_bytes


def _context_gather(rank: Rank) -> float:
    """Keys and values of full attention: once per layer, in every loop of the sequential comparison."""
    visits = rank.model.num_loops if rank.model.loop_kind is LoopKind.sequential else 1
    exchanges = 3 if rank.checkpointing is ActivationCheckpointing.layer else 2
    return visits * rank.num_layers * exchanges * ring(rank.shared_kv_bytes, rank.context)


def _context_halo(rank: Rank) -> int:
    """Halos of later loops, sent by a rank with two neighbours (one where there are two ranks)."""
    if rank.context == 1 or not rank.model.has_gates:
        return 0
    rows = rank.micro_batch_size * rank.model.window_left
    message = 2 * rows * rank.kv_width * rank.element_bytes
    exchanges = 3 if rank.checkpointing is ActivationCheckpointing.layer else 2
    return (rank.model.num_loops - 1) * rank.num_layers * exchanges * min(2, rank.context - 1) * message


def _shift(rank: Rank) -> float:
    """The last row of every stretch to all ranks that hold parts of the rows, on the first stage."""
    ranks = rank.context * (rank.tensor if rank.sequence_parallel else 1)
    if ranks == 1 or not rank.is_first or rank.model.loop_kind is LoopKind.sequential:
        return 0.0
    # with sequence parallelism over an even number of tensor ranks a rank's two units of the row are neighbours
    stretches = 1 if rank.context == 1 or (rank.sequence_parallel and rank.tensor % 2 == 0) else 2
    rows = ranks * stretches * rank.micro_batch_size * rank.model.hidden_size * rank.element_bytes
    return (rank.model.num_loops - 1) * 2 * ring(rows, ranks)


def _gradients(rank: Rank) -> float:
    """fp32 gradients of the stage, and those of tied embeddings between first and last stage."""
    once = ring(FP32_BYTES * stage_parameters(rank), rank.gradient_ranks)
    total = once if rank.distributed_optimizer else 2 * once
    if rank.model.tie_embeddings and rank.pipeline > 1 and (rank.is_first or rank.is_last):
        total += 2 * ring(FP32_BYTES * rank.vocab_width * rank.model.hidden_size, 2)
    return total


def _weights(rank: Rank) -> float:
    """Updated weights of the other ranks' shares."""
    if not rank.distributed_optimizer:
        return 0.0
    return ring(rank.element_bytes * stage_parameters(rank), rank.gradient_ranks)
