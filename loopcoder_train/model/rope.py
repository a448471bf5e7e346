"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864), in the half-split layout of Llama.

Every loop uses the same position for the same token; K1 is kept after rotation.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(slots=True)
class Rope:
    """Tables for one batch: `cos`, `sin` [B, S, 1, head_dim / 2], fp32."""

    cos: Tensor
    sin: Tensor


def rope_tables(positions: Tensor, head_dim: int, theta: float) -> Rope:
    """Angles `position * theta^(-2i / head_dim)` for int `positions` [B, S] (restarting with every document)."""
    exponent = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    angles = positions[..., None].float() * theta**-exponent
    return Rope(angles.cos()[:, :, None, :], angles.sin()[:, :, None, :])


def rotate(x: Tensor, rope: Rope) -> Tensor:
    """Rotate the pairs (x_i, x_{i + D/2}) of `x` [B, S, heads, D]; computed in fp32, returned in x's dtype."""
    first, second = x.float().chunk(2, dim=-1)
    rotated = torch.cat([first * rope.cos - second * rope.sin, second * rope.cos + first * rope.sin], dim=-1)
    return rotated.to(x.dtype)
