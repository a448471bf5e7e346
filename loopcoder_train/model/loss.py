"""Next-token loss: summed here, divided by the supervised tokens of the whole global batch by the engine."""

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORE_INDEX = -100  # labels that are not predicted: after the end of a document, padding


def token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy in nats of every token, fp32 [B, S], 0 where `labels` is IGNORE_INDEX.

    Args:
        logits: [B, S, V], any float dtype; the softmax is taken in fp32.
        labels: int64 [B, S].
    """
    losses = F.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORE_INDEX, reduction="none"
    )
    return losses.view(labels.shape)


def count_supervised(labels: Tensor) -> Tensor:
    """Number of predicted tokens, int64 scalar."""
    return torch.count_nonzero(labels != IGNORE_INDEX)
