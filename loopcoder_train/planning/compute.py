"""FLOPs of a run and of the parts of one rank, all taken from model/counts.py; one document per row.

What a visit of a layer and the head cost is what the whole model's count grows by when one is added.
"""

from dataclasses import dataclass, replace

import numpy as np

from loopcoder_train.config import ActivationCheckpointing, LoopKind, ModelConfig, RunConfig
from loopcoder_train.model.counts import AttentionPairs, forward_flops, pairs_of_lengths, training_flops
from loopcoder_train.planning.rank import Rank


@dataclass(frozen=True, slots=True)
class PartFlops:
    """Forward FLOPs of a micro-batch, the whole model's, before it is split."""

    first_visit: int  # of one layer in loop 1
    later_visit: int  # of one layer in a later loop
    head: int
    attention: int  # part of a later visit that selective checkpointing computes again; of the first one too


def row_pairs(model: ModelConfig, rows: int, sequence_length: int) -> AttentionPairs:
    """(query, key) pairs of `rows` rows of one document each."""
    return pairs_of_lengths(np.full(rows, sequence_length), model.window_left)


def training_flops_per_token(model: ModelConfig, sequence_length: int) -> float:
    """Forward and backward model FLOPs of a token; the mean over a row."""
    return training_flops(model, sequence_length, row_pairs(model, 1, sequence_length)) / sequence_length


def run_flops(config: RunConfig) -> float:
    """Forward and backward model FLOPs of the whole run, segment by segment."""
    return sum(
        steps * segment.batch_tokens * training_flops_per_token(config.model, segment.sequence_length)
        for segment, steps in config.steps_of_segments()
    )


def part_flops(rank: Rank) -> PartFlops:
    """FLOPs of the parts of one micro-batch."""
    tokens, pairs = rank.whole_rows, row_pairs(rank.model, rank.micro_batch_size, rank.sequence_length)
    one_layer = replace(rank.model, num_layers=1, num_loops=1)
    once = forward_flops(one_layer, tokens, pairs)
    first = forward_flops(replace(one_layer, num_layers=2), tokens, pairs) - once
    later = forward_flops(replace(one_layer, num_loops=2), tokens, pairs) - once
    without_pairs = forward_flops(one_layer, tokens, AttentionPairs(0, 0))
    return PartFlops(first, later, once - first, once - without_pairs)


def pass_flops(rank: Rank, loop: int) -> tuple[float, float]:
    """(forward, backward) FLOPs that this rank computes in one pass of loop `loop`, recomputation included.

    Backward costs twice forward. Layer recomputation adds the forward pass of the layers, selective that of attention.
    """
    parts = part_flops(rank)
    gated = loop > 1 and rank.model.loop_kind is LoopKind.parallel
    visit = parts.first_visit if loop == 1 else parts.later_visit
    attention = parts.attention + (parts.later_visit - parts.first_visit if gated else 0)
    layers, again = rank.num_layers * visit, 0
    if rank.checkpointing is ActivationCheckpointing.layer:
        again = layers
    elif rank.checkpointing is ActivationCheckpointing.selective:
        again = rank.num_layers * attention
    head = parts.head if rank.is_last and loop == rank.model.num_loops else 0
    share = rank.tensor * rank.context
    return (layers + head) / share, (2 * (layers + head) + again) / share
