"""Change of attention between loops: KL(A(r) || A(r-1)) in nats, per query and head of the same layer."""

from torch import Tensor

from loopcoder_train.lenses.divergence import divergence


def attention_kl(log_weights: Tensor, log_weights_before: Tensor) -> Tensor:
    """Mean over heads, [Q], of log attention weights [H, Q, n] of this loop and the one before."""
    return divergence(log_weights, log_weights_before).mean(dim=0)
