"""Loss if a loop were the last: -ln p(r)(true token), in nats."""

from torch import Tensor


def loop_loss(log_p: Tensor, labels: Tensor) -> Tensor:
    """[...] of log probabilities [..., V] and labels int64 [...]."""
    return -log_p.gather(-1, labels[..., None])[..., 0]
