"""Angular change: cosine between the updates of two loops in turn, u(r) = h(r) - h(r-1); negative = oscillation."""

from torch import Tensor
from torch.nn import functional as F

from loopcoder_train.lenses.precision import wide

_LEAST_NORM = 1e-8  # a shorter update has no direction: its cosine tends to 0


def angular_change(state: Tensor, before: Tensor, two_before: Tensor) -> Tensor:
    """cos(h(r) - h(r-1), h(r-1) - h(r-2)) [...] of states [..., d]; 0 where an update is zero."""
    state, before, two_before = wide(state), wide(before), wide(two_before)
    return F.cosine_similarity(state - before, before - two_before, dim=-1, eps=_LEAST_NORM)
