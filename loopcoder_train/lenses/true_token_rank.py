"""Logit-lens rank of the true token after a loop: 1 = the most probable one. Equal logits do not count as better."""

from torch import Tensor


def true_token_rank(log_p: Tensor, labels: Tensor) -> Tensor:
    """int64 [...]: 1 + number of tokens with a larger probability; log probabilities [..., V], labels int64 [...]."""
    return 1 + (log_p > log_p.gather(-1, labels[..., None])).sum(dim=-1)
