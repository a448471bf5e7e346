"""The global gate of G-SWA under tensor parallelism: every rank needs the gates of its own heads for all tokens.

Hidden gate. Its parameters are whole on every rank and it is computed where the layer's input lies, for ALL heads; only
the gate logits then move, H numbers per token instead of d (the 7B: 40 instead of 5120):

    tensor parallel       every rank computes all heads of all tokens and takes its own; backward gathers the heads'
                          gradients, so gate weight, bias, norm AND the layer's input get the whole gradient everywhere
    + sequence parallel   every rank computes all heads of its tokens; an all-to-all turns that into its heads of all
                          tokens, and back in backward; the parameters' gradients are partial sums over tokens, which
                          Megatron adds up for parameters marked `sequence_parallel`

A column-parallel gate would instead gather its own normed copy of the layer's input under sequence parallelism, reduce
a second [S, B, d] input gradient without it, and leave gate_norm's gradient on each rank that of its own heads.
Computing all heads everywhere costs H / (H + 2 G) / head_dim of the qkv product (0.6% in the 7B).

Query gate. Each head's weight meets that head's query, so both are split by heads and nothing moves.
"""

import torch
from megatron.core.tensor_parallel import scatter_to_tensor_model_parallel_region
from megatron.core.tensor_parallel.mappings import all_to_all_sp2hp
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from loopcoder_train.config import GateInput, ModelConfig
from loopcoder_train.engines.megatron.norm import Norm, mark_split, sum_over_sequence_parts
from loopcoder_train.model.gated_attention import query_gate


class HiddenGate(nn.Module):
    """Gate on the layer's input before its input norm; parameters as in the plain model, whole on every rank."""

    def __init__(self, model: ModelConfig, config: TransformerConfig, group: distributed.ProcessGroup):
        super().__init__()
        self.group, self.sequence_parallel = group, config.sequence_parallel
        self.weight = nn.Parameter(torch.empty(model.num_attention_heads, model.hidden_size))
        self.bias = nn.Parameter(torch.empty(model.num_attention_heads))
        self.gate_norm = Norm(model.hidden_size, model.rms_norm_eps, config)
        sum_over_sequence_parts(self.weight, config)
        sum_over_sequence_parts(self.bias, config)

    def forward(self, layer_input: Tensor, query: Tensor) -> Tensor:
        """Gates [B, S, H_local] of this rank's heads from `layer_input` [S_local, B, d]."""
        logits = F.linear(self.gate_norm(layer_input), self.weight, self.bias)
        return torch.sigmoid(own_heads(logits, self.group, self.sequence_parallel)).transpose(0, 1)


class QueryGate(nn.Module):
    """Gate on each head's rotated query; weight and bias split by heads."""

    def __init__(self, model: ModelConfig, config: TransformerConfig, group: distributed.ProcessGroup):
        super().__init__()
        heads = model.num_attention_heads // group.size()
        self.weight = nn.Parameter(torch.empty(heads, model.head_dim))
        self.bias = nn.Parameter(torch.empty(heads))
        mark_split(self.weight, dim=0)
        mark_split(self.bias, dim=0)

    def forward(self, layer_input: Tensor, query: Tensor) -> Tensor:
        """Gates [B, S, H_local] from `query` [B, S, H_local, head_dim]."""
        return query_gate(query, self.weight, self.bias)


def own_heads(logits: Tensor, group: distributed.ProcessGroup, sequence_parallel: bool) -> Tensor:
    """[S_local, B, H] of all heads -> [S, B, H_local] of this rank's heads."""
    if group.size() == 1:
        return logits
    if not sequence_parallel:
        return scatter_to_tensor_model_parallel_region(logits, group=group)
    return all_to_all_sp2hp(logits, group=group).unflatten(0, (-1, logits.shape[1]))


def build_gate(model: ModelConfig, config: TransformerConfig, group: distributed.ProcessGroup) -> nn.Module:
    """The gate that `model.gate_input` names."""
    return {GateInput.hidden: HiddenGate, GateInput.query: QueryGate}[model.gate_input](model, config, group)
