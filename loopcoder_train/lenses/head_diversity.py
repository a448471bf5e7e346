"""Diversity of heads: how differently the heads of a layer look from one query.

The H rows of a query's attention weights form an H x n matrix: its effective rank is 1 when all heads look alike and
at most H; the mean cosine of two different heads is 1 when they look alike, 0 when they share no key.
"""

from torch import Tensor

from loopcoder_train.lenses.effective_rank import effective_rank


def head_rank(weights: Tensor) -> Tensor:
    """Effective rank [Q] of each query's matrix; `weights` [H, Q, n], each row a distribution."""
    return effective_rank(weights.transpose(0, 1))


def head_cosine(weights: Tensor) -> Tensor:
    """Mean off-diagonal cosine [Q] between heads; `weights` [H, Q, n] with H >= 2.

    The sum over all pairs is || sum of unit rows ||^2; the H pairs of a head with itself are taken away.
    """
    heads = weights.shape[0]
    units = weights / weights.norm(dim=-1, keepdim=True)
    return (units.sum(dim=0).square().sum(dim=-1) - heads) / (heads * (heads - 1))
