"""Entropy of attention in nats: 0 when a query looks at one key, ln n when it looks at n keys alike."""

import torch
from torch import Tensor


def attention_entropy(log_weights: Tensor) -> Tensor:
    """Mean over heads, [Q], of log attention weights [H, Q, n]; -inf = not visible."""
    return torch.special.entr(log_weights.exp()).sum(dim=-1).mean(dim=0)
