"""Mean gate: how far the GLOBAL branch of G-SWA is open, 0 to 1; 0.5 in a fresh model."""

from torch import Tensor

from loopcoder_train.lenses.precision import wide


def gate_mean(gate: Tensor) -> Tensor:
    """Mean over heads, [...] of gates [..., H]."""
    return wide(gate).mean(dim=-1)
