"""Angular change: cosine between the updates of two loops in turn, u(r) = h(r) - h(r-1); negative = oscillation."""

from torch import Tensor
from torch.nn import functional as F

from loopcoder_train.lenses.precision import wide

_ROUNDING = 1e-4  # an update shorter than this part of the state has no direction: another kernel gives another one


def angular_change(state: Tensor, before: Tensor, two_before: Tensor) -> Tensor:
    """cos(h(r) - h(r-1), h(r-1) - h(r-2)) [...] of states [..., d]; 0 where an update is zero or rounding."""
    state, before, two_before = wide(state), wide(before), wide(two_before)
    update, update_before = state - before, before - two_before
    least = _ROUNDING * before.norm(dim=-1)
    no_direction = (update.norm(dim=-1) < least) | (update_before.norm(dim=-1) < least)
    return F.cosine_similarity(update, update_before, dim=-1).masked_fill(no_direction, 0.0)
