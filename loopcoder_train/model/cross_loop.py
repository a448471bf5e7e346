"""The cross-loop position offset (CLP): how loop r >= 2 reads what loop r-1 wrote.

    B(r) = a * E + b * shift(N(h(r-1)))          (plt.md section 1; LoopCoder-v2, arXiv 2606.18023)

Token i reads the previous loop's state of token i-1, which lets all loops of neighbouring tokens run side by side in
decoding. The first token of every document reads zeros, as a request does at inference.
"""

import torch
from torch import Tensor


def shift_right(hidden: Tensor, starts: Tensor) -> Tensor:
    """`shift(h)_i = h_{i-1}`, and zero where `starts` is true.

    Args:
        hidden: [B, S, d].
        starts: bool [B, S], the first token of every document (position 0 of a row must be one).
    """
    shifted = torch.cat([torch.zeros_like(hidden[:, :1]), hidden[:, :-1]], dim=1)
    return shifted.masked_fill(starts[..., None], 0.0)


def loop_input(embedding: Tensor, shifted: Tensor, embedding_scale: float, hidden_scale: float) -> Tensor:
    """`a * E + b * shifted`; unit scales cost nothing."""
    if embedding_scale != 1.0:
        embedding = embedding_scale * embedding
    if hidden_scale != 1.0:
        shifted = hidden_scale * shifted
    return embedding + shifted
