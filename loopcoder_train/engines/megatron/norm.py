"""RMSNorm on Megatron, and the attributes by which Megatron learns how a parameter is laid out over tensor ranks."""

from megatron.core.tensor_parallel import set_tensor_model_parallel_attributes
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import nn

from loopcoder_train.model.layers import RMSNorm


def sum_over_sequence_parts(parameter: nn.Parameter, config: TransformerConfig) -> None:
    """A whole parameter that meets only this rank's rows: its gradients are summed over tensor ranks."""
    parameter.sequence_parallel = config.sequence_parallel


def mark_split(parameter: nn.Parameter, dim: int) -> None:
    """A parameter split along `dim`: every rank's part counts in the gradient norm (whole ones count once)."""
    set_tensor_model_parallel_attributes(parameter, True, dim, 1)


class Norm(RMSNorm):
    """The plain model's RMSNorm; whole on every rank, on this rank's rows [S_local, B, d]."""

    def __init__(self, size: int, eps: float, config: TransformerConfig):
        super().__init__(size, eps)
        sum_over_sequence_parts(self.weight, config)
