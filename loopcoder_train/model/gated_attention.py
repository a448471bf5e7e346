"""G-SWA: gated sliding-window attention of loops >= 2, and plain causal attention of loop 1.

    y_global = Attn(q, K1, V1)             keys and values of loop 1, same layer, causal
    y_local  = Attn(q, k, v, window)       the loop's own keys and values
    g        = sigmoid(gate)               one scalar per head and token
    y        = g * y_global + (1 - g) * y_local                       (plt.md section 1)

Two separate softmaxes; g opens the GLOBAL branch. Engines differ in how they project and split heads; what happens
between projection and output is this file, for all of them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loopcoder_train.config import GateInput, ModelConfig
from loopcoder_train.model.attention import AttentionKernels
from loopcoder_train.model.documents import Documents
from loopcoder_train.model.layers import RMSNorm


@dataclass(slots=True)
class SharedKV:
    """Keys (after RoPE) and values of one layer in one loop: [B, S, kv_heads, head_dim] each."""

    key: Tensor
    value: Tensor


class HiddenGate(nn.Module):
    """Gate on the layer's input `u` before its input norm: sigmoid(W RMSNorm_g(u) + b) (released models)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.num_attention_heads, config.hidden_size))
        self.bias = nn.Parameter(torch.empty(config.num_attention_heads))
        self.gate_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, layer_input: Tensor, query: Tensor) -> Tensor:
        """Gate [B, S, H] from `layer_input` [B, S, d]."""
        return torch.sigmoid(F.linear(self.gate_norm(layer_input), self.weight, self.bias))


class QueryGate(nn.Module):
    """Gate on each head's rotated query: sigmoid(<q_h, w_h> + b_h) (PLT paper)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.num_attention_heads, config.head_dim))
        self.bias = nn.Parameter(torch.empty(config.num_attention_heads))

    def forward(self, layer_input: Tensor, query: Tensor) -> Tensor:
        """Gate [B, S, H] from `query` [B, S, H, head_dim]."""
        return query_gate(query, self.weight, self.bias)


def query_gate(query: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """sigmoid(<q_h, w_h> + b_h): [..., H] from `query` [..., H, D], `weight` [H, D], `bias` [H]."""
    return torch.sigmoid((query * weight).sum(dim=-1) + bias)


def build_gate(config: ModelConfig) -> HiddenGate | QueryGate:
    """The gate that `config.gate_input` names."""
    return {GateInput.hidden: HiddenGate, GateInput.query: QueryGate}[config.gate_input](config)


def blend(gate: Tensor, global_output: Tensor, local_output: Tensor) -> Tensor:
    """`g * y_global + (1 - g) * y_local` with `gate` [B, S, H] and outputs [B, S, H, D]."""
    return torch.lerp(local_output, global_output, gate[..., None])


def gated_attention(
    query: Tensor,
    own: SharedKV,
    shared: SharedKV,
    gate: Tensor,
    documents: Documents,
    kernels: AttentionKernels,
    window_left: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Output, global output and local output of one layer in a loop >= 2, each [B, S, H, D]."""
    global_output = kernels.global_attention(query, shared.key, shared.value, documents)
    local_output = kernels.local_attention(query, own.key, own.value, documents, window_left)
    return blend(gate, global_output, local_output), global_output, local_output
