"""Kullback-Leibler divergence of distributions given by their logarithms."""

import torch
from torch import Tensor


def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) = sum p (ln p - ln q) in nats over the last dim; -inf in `log_p` means p = 0.

    No epsilon: logarithms come from log-softmax, finite wherever p can be positive.
    """
    p = log_p.exp()
    return torch.where(p > 0, p * (log_p - log_q), 0.0).sum(dim=-1)
