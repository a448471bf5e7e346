"""Fixed-point gap: how far a state is from one that a visit of the stack leaves alone, ||h(r) - f(h(r))||."""

from torch import Tensor

from loopcoder_train.lenses.precision import wide


def fixed_point_gap(state: Tensor, visited: Tensor) -> Tensor:
    """[...] of states [..., d] and f(state) [..., d]."""
    return (wide(visited) - wide(state)).norm(dim=-1)
