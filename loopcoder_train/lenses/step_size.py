"""Step size of a loop: how far it moves a token's state, ||h(r) - h(r-1)||."""

from torch import Tensor

from loopcoder_train.lenses.precision import wide


def step_size(state: Tensor, before: Tensor) -> Tensor:
    """L2 norm [...] of the difference of two states [..., d]."""
    return (wide(state) - wide(before)).norm(dim=-1)
