"""G-SWA: gated sliding-window attention of loops >= 2, and plain causal attention of loop 1.

    y_global = Attn(q, K1, V1)             keys and values of loop 1, same layer, causal
    y_local  = Attn(q, k, v, window)       the loop's own keys and values
    g        = sigmoid(gate)               one scalar per head and token
    y        = g * y_global + (1 - g) * y_local                       (plt.md section 1)

Two separate softmaxes; g opens the GLOBAL branch. Engines differ in how they project and split heads; what happens
between projection and output is this file, for all of them.
"""

from dataclasses import dataclass
from typing import Protocol

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


class Attend(Protocol):
    """The two branches over the rows of one forward pass, wherever their keys and values lie.

    A visit's own keys and values pass through `gathered` before full attention and before later loops read them as
    `shared`, and through `with_halo` before the window: where rows are split over ranks, what a query sees comes along.
    """

    def gathered(self, own: SharedKV) -> SharedKV:
        """Whole rows, from this process's part of them."""
        ...

    def with_halo(self, own: SharedKV) -> SharedKV:
        """This process's rows and those before that its windows reach."""
        ...

    def global_attention(self, query: Tensor, shared: SharedKV) -> Tensor:
        """Causal attention inside documents over whole rows: [B, Q, H, D] from `query` [B, Q, H, D]."""
        ...

    def local_attention(self, query: Tensor, own: SharedKV) -> Tensor:
        """The same inside the sliding window."""
        ...


@dataclass(frozen=True, slots=True)
class WholeRows:
    """Both branches where this process holds whole rows: `Q = S`."""

    kernels: AttentionKernels
    documents: Documents
    window_left: int

    def gathered(self, own: SharedKV) -> SharedKV:
        """The same: the rows are whole."""
        return own

    def with_halo(self, own: SharedKV) -> SharedKV:
        """The same: the rows are whole."""
        return own

    def global_attention(self, query: Tensor, shared: SharedKV) -> Tensor:
        """[B, S, H, D] over keys and values [B, S, G, D]."""
        return self.kernels.global_attention(query, shared.key, shared.value, self.documents)

    def local_attention(self, query: Tensor, own: SharedKV) -> Tensor:
        """[B, S, H, D] over `window_left` keys to the left plus the query's own."""
        return self.kernels.local_attention(query, own.key, own.value, self.documents, self.window_left)


def gated_attention(
    query: Tensor, own: SharedKV, shared: SharedKV, gate: Tensor, attend: Attend
) -> tuple[Tensor, Tensor, Tensor]:
    """Output, global output and local output of one layer in a loop >= 2, each [B, Q, H, D]."""
    global_output = attend.global_attention(query, shared)
    local_output = attend.local_attention(query, own)
    return blend(gate, global_output, local_output), global_output, local_output
