"""Output shift of a loop: KL(p(r) || p(r-1)) in nats, p(r) = softmax(Head(FinalNorm(h(r))))."""

from torch import Tensor

from loopcoder_train.lenses.divergence import divergence


def output_kl(log_p: Tensor, log_p_before: Tensor) -> Tensor:
    """[...] of log probabilities [..., V] after this loop and the one before."""
    return divergence(log_p, log_p_before)
