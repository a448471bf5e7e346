"""From the stream's numpy batches to the engine's tensors."""

from typing import Protocol

import numpy as np
import torch

from loopcoder_train.engines.engine import MicroBatch


class NumpyBatch(Protocol):
    """What the token stream yields: `input_ids`, `labels`, `document_ids` [B, S] and `source_ids` [B]."""

    input_ids: np.ndarray
    labels: np.ndarray
    document_ids: np.ndarray
    source_ids: np.ndarray


def to_micro_batch(batch: NumpyBatch) -> MicroBatch:
    """The same batch as int64 CPU tensors; the engine moves them to its device."""
    return MicroBatch(
        input_ids=_int64(batch.input_ids),
        labels=_int64(batch.labels),
        document_ids=_int64(batch.document_ids),
        source_ids=_int64(batch.source_ids),
    )


def _int64(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64))
