"""Entropy of the next-token distribution read after a loop, in nats."""

from torch import Tensor


def output_entropy(log_p: Tensor) -> Tensor:
    """[...] of log probabilities [..., V]."""
    return -(log_p.exp() * log_p).sum(dim=-1)
