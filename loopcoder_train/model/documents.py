"""Packed documents: which positions of a row see each other, and where each document begins.

One :class:`Documents` is made per forward pass and shared by all layers and loops, so masks are built once. Document
boundaries reach three places: attention (no key of another document), RoPE (positions restart) and the cross-loop
shift (zero at the first token of every document).
"""

from collections.abc import Callable

import torch
from torch import Tensor


class Documents:
    """Document structure of a batch of `[B, S]` rows.

    Attributes:
        ids: int64 [B, S], non-decreasing inside a row, or None when every row is one document.
        positions: int64 [B, S], position of each token inside its own document (RoPE).
        starts: bool [B, S], true at the first token of every document.
    """

    def __init__(self, batch_size: int, sequence_length: int, ids: Tensor | None, device: torch.device):
        self.batch_size, self.sequence_length, self.ids, self.device = batch_size, sequence_length, ids, device
        index = torch.arange(sequence_length, device=device).expand(batch_size, -1)
        if ids is None:
            self.positions, self.starts = index, index == 0
        else:
            self.starts = torch.cat([torch.ones_like(ids[:, :1], dtype=torch.bool), ids[:, 1:] != ids[:, :-1]], dim=1)
            self.positions = index - torch.where(self.starts, index, 0).cummax(dim=1).values
        self._cache: dict[object, Tensor] = {}

    @classmethod
    def of(cls, input_ids: Tensor, document_ids: Tensor | None) -> "Documents":
        """Documents of `input_ids` [B, S]; `document_ids` of the same shape, or None for one document per row."""
        if document_ids is not None and document_ids.shape != input_ids.shape:
            raise ValueError(
                f"document_ids has shape {tuple(document_ids.shape)}: must equal input_ids' {tuple(input_ids.shape)}"
            )
        return cls(*input_ids.shape, document_ids, input_ids.device)

    def cached(self, key: object, make: Callable[[], Tensor]) -> Tensor:
        """What `make()` returned the first time it was asked for under `key`."""
        if key not in self._cache:
            self._cache[key] = make()
        return self._cache[key]

    def visible(self, window_left: int | None) -> Tensor:
        """Bool [B or 1, S, S]: may query i see key j? Causal, same document, at most `window_left` keys to the left."""
        index = torch.arange(self.sequence_length, device=self.device)
        distance = index[:, None] - index[None, :]
        seen = distance >= 0
        if window_left is not None:
            seen &= distance <= window_left
        seen = seen[None]
        return seen if self.ids is None else seen & (self.ids[:, :, None] == self.ids[:, None, :])

    def additive_mask(self, window_left: int | None, dtype: torch.dtype) -> Tensor:
        """`visible` as 0 / -inf, [B or 1, 1, S, S] in `dtype`, built once per window and dtype."""
        return self.cached(
            ("mask", window_left, dtype), lambda: additive(self.visible(window_left), dtype).unsqueeze(1)
        )

    def cumulative_lengths(self) -> Tensor:
        """int32 [documents + 1]: where each document begins in the flattened batch, and its end (varlen kernels)."""

        def make() -> Tensor:
            begin = self.starts.flatten().nonzero().flatten()
            end = begin.new_tensor([self.batch_size * self.sequence_length])
            return torch.cat([begin, end]).to(torch.int32)

        return self.cached("cumulative_lengths", make)


def additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where `visible`, -inf elsewhere."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, float("-inf"))
