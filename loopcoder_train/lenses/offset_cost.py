"""Offset cost Omega(r): what reading the left neighbour's state instead of one's own changes.

    Omega(r) = mean_i || h(r-1)_i - h(r-1)_{i-1} ||

Only tokens that have a left neighbour in their document count; the first one reads zeros.
"""

from torch import Tensor

from loopcoder_train.lenses.precision import wide


def offset_cost(previous: Tensor) -> Tensor:
    """Distances [n - 1] of neighbours in the states h(r-1) [n, d] of one document, for i = 1 .. n - 1."""
    previous = wide(previous)
    return (previous[1:] - previous[:-1]).norm(dim=-1)
