"""Parameters of one rank, and the bytes that stay for the whole run: weights, gradients, optimizer state."""

from math import prod

from loopcoder_train.config import GateInput, ModelConfig
from loopcoder_train.model.names import layer_parameter_shapes
from loopcoder_train.planning.rank import FP32_BYTES, Rank


def is_whole_on_every_rank(name: str, model: ModelConfig) -> bool:
    """Norms and the hidden gate are not split over tensor ranks."""
    return name.endswith("norm.weight") or (".plt_gate." in name and model.gate_input is GateInput.hidden)


def layer_parameters(rank: Rank) -> int:
    """Parameters of one layer on this tensor rank."""
    return sum(
        prod(shape) // (1 if is_whole_on_every_rank(name, rank.model) else rank.tensor)
        for name, shape in layer_parameter_shapes(rank.model).items()
    )


def stage_parameters(rank: Rank) -> int:
    """Parameters of this rank's stage. With tied embeddings and several stages the last one has a copy for its head."""
    embedding = rank.vocab_width * rank.model.hidden_size
    has_head = rank.is_last and not (rank.model.tie_embeddings and rank.is_first)
    count = rank.num_layers * layer_parameters(rank)
    if rank.is_last:
        count += rank.model.hidden_size  # the final norm
    return count + embedding * (rank.is_first + has_head)


def owned_parameters(rank: Rank) -> int:
    """Parameters whose optimizer state this rank holds: all, or its share under the distributed optimizer."""
    share = rank.gradient_ranks if rank.distributed_optimizer else 1
    return -(-stage_parameters(rank) // share)


def optimizer_bytes(rank: Rank) -> int:
    """Both Adam moments and, in bf16, the fp32 masters."""
    copies = 2 if rank.element_bytes == FP32_BYTES else 3
    return copies * FP32_BYTES * owned_parameters(rank)


def optimizer_work_bytes(rank: Rank) -> int:
    """What AdamW needs while it steps, when activations are gone.

    On CUDA torch updates all parameters at once and needs one more number for each. On CPUs it takes one after the
    other: two more numbers for each of the one at hand, and one for each of the one before.
    """
    if rank.kernels.on_cuda:
        return FP32_BYTES * owned_parameters(rank)
    embedding = rank.vocab_width if rank.is_first or rank.is_last else 0
    has_own_head = rank.is_last and not (rank.model.tie_embeddings and rank.is_first)
    rows = max(2 * embedding + (rank.mlp_width if has_own_head else 0), 4 * rank.mlp_width + rank.query_width)
    return FP32_BYTES * min(rows * rank.model.hidden_size, 2 * owned_parameters(rank))
