"""Held-out loss document by document: what an interval over documents, and a paired comparison of two runs, is made of.

`evaluate_heldout` asks an engine for token losses batch by batch; :class:`DocumentLosses` stands between the two and
keeps the sums of every document. A document that goes on in the next row of its source is one document.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from loopcoder_train.engines.engine import MicroBatch
from loopcoder_train.evaluation.heldout import LossEngine
from loopcoder_train.model.loss import IGNORE_INDEX


@dataclass(slots=True)
class DocumentTable:
    """Documents in their order. `sources[i]`: index of its source; `tokens[i]`: supervised tokens, at least 1;
    `losses[r][i]`: sum of token losses in nats, read after loop r + 1."""

    sources: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    losses: list[list[float]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Three columns."""
        return asdict(self)


class DocumentLosses:
    """`engine` of one process, and `table`, which grows with every batch, in order."""

    data_parallel_rank = 0
    data_parallel_size = 1

    def __init__(self, engine: LossEngine) -> None:
        assert engine.data_parallel_size == 1, "the documents of other ranks would be missing"
        self._engine, self.table = engine, DocumentTable()
        self._open: int | None = None  # source of a document that the last row did not end

    def token_losses(self, batch: MicroBatch) -> torch.Tensor:
        """The engine's: fp32 [R, B, S]."""
        losses_RBS = self._engine.token_losses(batch)
        values = losses_RBS.double().cpu().numpy()
        for row in range(values.shape[1]):
            labels, ids = batch.labels[row].cpu().numpy(), batch.document_ids[row].cpu().numpy()
            self._add_row(int(batch.source_ids[row]), labels, ids, values[:, row])
        return losses_RBS

    def sum_over_data_parallel(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor itself."""
        return tensor

    def _add_row(self, source: int, labels: np.ndarray, ids: np.ndarray, losses_RS: np.ndarray) -> None:
        table = self.table
        if not table.losses:
            table.losses = [[] for _ in losses_RS]
        supervised = labels != IGNORE_INDEX
        for document in np.unique(ids[supervised]):
            place = supervised & (ids == document)
            sums, tokens = losses_RS[:, place].sum(axis=1), int(place.sum())
            if self._open == source and document == ids[0]:
                table.tokens[-1] += tokens
                for column, value in zip(table.losses, sums, strict=True):
                    column[-1] += float(value)
            else:
                table.sources.append(source)
                table.tokens.append(tokens)
                for column, value in zip(table.losses, sums, strict=True):
                    column.append(float(value))
        self._open = source if supervised[-1] else None
