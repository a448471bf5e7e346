"""In which precision a lens computes."""

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """`x` in fp32; fp64 stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
