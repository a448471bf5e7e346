"""Closed-form counts: parameters, FLOPs (window-, loop-, gate- and document-aware) and bytes of keys and values.

One multiply-add is 2 FLOPs; the backward pass costs twice the forward pass; recomputation is not counted (it is not
model FLOPs). Attention counts exactly the (query, key) pairs that the masks leave visible. Norms, RoPE, softmax and
element-wise work are left out, as everywhere in the field.
"""

from dataclasses import dataclass
from math import prod

import numpy as np

from loopcoder_train.config import GateInput, LoopKind, ModelConfig
from loopcoder_train.model.names import EMBEDDING, HEAD, is_gate, parameter_shapes


@dataclass(frozen=True, slots=True)
class ParameterCounts:
    """Numbers of parameters. `total` includes gates; `gates` is the part that only loops >= 2 use."""

    total: int
    embedding: int  # input embedding, and the head when untied
    gates: int


def count_parameters(config: ModelConfig) -> ParameterCounts:
    """Parameters of the model that `config` describes; independent of the number of loops beyond having gates."""
    sizes = {name: prod(shape) for name, shape in parameter_shapes(config).items()}
    return ParameterCounts(
        total=sum(sizes.values()),
        embedding=sizes[EMBEDDING] + sizes.get(HEAD, 0),
        gates=sum(size for name, size in sizes.items() if is_gate(name)),
    )


@dataclass(frozen=True, slots=True)
class AttentionPairs:
    """(query, key) pairs that one head of one layer sees in one visit."""

    causal: int  # causal attention inside documents
    window: int  # sliding window inside documents


def attention_pairs(document_ids: np.ndarray, window_left: int) -> AttentionPairs:
    """Exact pairs of a batch of packed rows, `document_ids` int [B, S] non-decreasing inside a row."""
    starts = np.ones(document_ids.shape, dtype=bool)
    starts[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    lengths = np.diff(np.append(np.flatnonzero(starts), document_ids.size))
    return pairs_of_lengths(lengths, window_left)


def pairs_of_lengths(lengths: np.ndarray, window_left: int) -> AttentionPairs:
    """Exact pairs of documents with these `lengths` in tokens (int [documents])."""
    lengths = np.asarray(lengths, dtype=np.int64)
    inside = np.minimum(lengths, window_left + 1)  # the first tokens see fewer keys than the window holds
    window = inside * (inside + 1) // 2 + (lengths - inside) * (window_left + 1)
    return AttentionPairs(causal=int((lengths * (lengths + 1) // 2).sum()), window=int(window.sum()))


def forward_flops(config: ModelConfig, tokens: int, pairs: AttentionPairs) -> int:
    """FLOPs of one forward pass over `tokens` tokens whose masks leave `pairs` visible."""
    heads_width = config.num_attention_heads * config.head_dim
    kv_width = config.num_key_value_heads * config.head_dim
    projections = (
        config.hidden_size * (2 * heads_width + 2 * kv_width) + 3 * config.hidden_size * config.intermediate_size
    )
    gate_width = config.hidden_size if config.gate_input is GateInput.hidden else config.head_dim
    pair_cost = 4 * heads_width  # q.k and p.v, one multiply-add per channel each

    first_visit = 2 * tokens * projections + pair_cost * pairs.causal
    later_visit = first_visit
    if config.loop_kind is LoopKind.parallel:
        later_visit += 2 * tokens * config.num_attention_heads * gate_width + pair_cost * pairs.window
    visits = first_visit + (config.num_loops - 1) * later_visit
    return config.num_layers * visits + 2 * tokens * config.hidden_size * config.vocab_size


def training_flops(config: ModelConfig, tokens: int, pairs: AttentionPairs) -> int:
    """Model FLOPs of one forward and backward pass (3 x forward)."""
    return 3 * forward_flops(config, tokens, pairs)


def kv_cache_bytes(config: ModelConfig, sequence_length: int, bytes_per_value: int = 2) -> int:
    """Bytes of keys and values that decoding one sequence keeps at `sequence_length` tokens.

    Parallel loops: loop 1's whole cache and one ring of window_left + 1 for each later loop. Sequential loops: every
    loop its whole cache.
    """
    per_position = 2 * config.num_layers * config.num_key_value_heads * config.head_dim * bytes_per_value
    later = sequence_length
    if config.loop_kind is LoopKind.parallel:
        later = min(sequence_length, config.window_left + 1)
    return per_position * (sequence_length + (config.num_loops - 1) * later)
