"""Held-out loss by source, language, kind and loop.

Held-out sequences come in a fixed order, source after source. Data-parallel ranks take the batches in turn; where the
last turn does not fill every rank, the others run a batch without labels, because an engine call is a collective. Each
rank adds up token losses per (loop, source) in float64; one sum over the ranks makes the tables equal everywhere.

Losses are per supervised token. Sums over several sources weigh them by their evaluated tokens, so with
`max_sequences_per_source` every source counts about the same, however large it is.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

import numpy as np
import torch

from data_pipeline.manifest import Corpus, SourceInfo, SplitInfo
from data_pipeline.stream import Batch, heldout_batches
from loopcoder_train.config import UserError
from loopcoder_train.engines.engine import MicroBatch
from loopcoder_train.model.loss import IGNORE_INDEX
from loopcoder_train.runtime.heartbeat import beat
from loopcoder_train.training.batch import to_micro_batch


@dataclass(frozen=True, slots=True)
class Loss:
    """Held-out loss of some sources taken together."""

    loop_losses: list[float]  # nats per supervised token, read after loop 1, 2, ..., R
    supervised_tokens: int
    documents: int  # whole or cut off at a row's end
    bits_per_byte: float | None = None  # of the last loop; None where the corpus does not tell bytes

    @property
    def loss(self) -> float:
        """The model's own loss: the last loop's."""
        return self.loop_losses[-1]


@dataclass(frozen=True, slots=True)
class HeldOutReport:
    """The same losses grouped in four ways. Only sources with held-out tokens appear."""

    overall: Loss
    by_kind: dict[str, Loss]  # text, code
    by_language: dict[str, Loss]
    by_source: dict[str, Loss]

    @property
    def num_loops(self) -> int:
        """R of the evaluated forward pass."""
        return len(self.overall.loop_losses)

    def metrics(self) -> dict[str, float]:
        """A flat evaluation record: `loss`, `loss/loop1`, `loss/kind/code`, `loss/language/python`, `loss/source/x`."""
        values: dict[str, float] = {"loss": self.overall.loss}
        values |= {f"loss/loop{number}": loss for number, loss in enumerate(self.overall.loop_losses, start=1)}
        for group, losses in self._groups():
            values |= {f"loss/{group}/{name}": entry.loss for name, entry in losses.items()}
        for name, entry in self.by_kind.items():
            values |= {f"loss/kind/{name}/loop{r}": loss for r, loss in enumerate(entry.loop_losses, start=1)}
        values["supervised_tokens"] = self.overall.supervised_tokens
        values["documents"] = self.overall.documents
        if self.overall.bits_per_byte is not None:
            values["bits_per_byte"] = self.overall.bits_per_byte
        return values

    def to_json(self) -> dict[str, object]:
        """Everything, for `evaluation.json`."""
        groups = {f"by_{name}": {key: asdict(loss) for key, loss in losses.items()} for name, losses in self._groups()}
        return {"num_loops": self.num_loops, "overall": asdict(self.overall), **groups}

    def _groups(self) -> list[tuple[str, dict[str, Loss]]]:
        return [("kind", self.by_kind), ("language", self.by_language), ("source", self.by_source)]


class LossEngine(Protocol):
    """The part of the engine protocol that an evaluation needs."""

    data_parallel_rank: int
    data_parallel_size: int

    def token_losses(self, batch: MicroBatch) -> torch.Tensor:
        """fp32 [R, B, S], 0 where the label is ignored."""
        ...

    def sum_over_data_parallel(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum over the data-parallel ranks."""
        ...


class EvaluationInterrupted(Exception):  # noqa: N818 - not an error
    """`interrupted` of :func:`evaluate_heldout` became true."""


def evaluate_heldout(
    engine: LossEngine,
    corpus: Corpus,
    sequence_length: int,
    batch_size: int,
    max_sequences_per_source: int | None,
    *,
    interrupted: Callable[[], bool] = lambda: False,
) -> HeldOutReport:
    """Evaluate on every rank together; the report is equal on all of them.

    `batch_size`: sequences per forward pass on one rank. `max_sequences_per_source`: None for all. `interrupted` is
    asked before each forward pass, on every rank, and must answer alike. Raises UserError when the corpus has no
    held-out token, EvaluationInterrupted when `interrupted` says so.
    """
    _require_heldout(corpus)
    batches = heldout_batches(corpus, sequence_length, batch_size, max_sequences_per_source)
    return evaluate_batches(engine, batches, corpus.manifest.sources, corpus.directory, interrupted=interrupted)


def evaluate_batches(
    engine: LossEngine,
    batches: Iterable[Batch],
    sources: Sequence[SourceInfo],
    where: object,
    *,
    interrupted: Callable[[], bool] = lambda: False,
) -> HeldOutReport:
    """:func:`evaluate_heldout` of any batches; their `source_ids` count `sources`, and a UserError names `where`."""
    sums = _Sums(len(sources))
    for batch in own_turns(batches, engine.data_parallel_rank, engine.data_parallel_size):
        if interrupted():
            raise EvaluationInterrupted
        sums.add(batch, engine.token_losses(batch))
        beat()
    losses, tokens, documents = sums.total(engine)
    if not tokens.any():
        raise UserError(f"{where}: held-out documents have no token to predict; build a larger corpus")
    return _report(sources, losses, tokens, documents)


def probe_batch(corpus: Corpus, sequence_length: int, num_sequences: int) -> MicroBatch:
    """At most `num_sequences` held-out sequences spread evenly over the sources; the same on every call and rank.

    Raises UserError when the corpus has no held-out token.
    """
    present = _require_heldout(corpus)
    rows = list(heldout_batches(corpus, sequence_length, 1, max_sequences_per_source=-(-num_sequences // present)))
    chosen = np.unique(np.linspace(0, len(rows) - 1, num_sequences).round().astype(int))
    parts = [to_micro_batch(rows[index]) for index in chosen]
    return MicroBatch(
        input_ids=torch.cat([part.input_ids for part in parts]),
        labels=torch.cat([part.labels for part in parts]),
        document_ids=torch.cat([part.document_ids for part in parts]),
        source_ids=torch.cat([part.source_ids for part in parts]),
    )


def _require_heldout(corpus: Corpus) -> int:
    """Number of sources with held-out tokens."""
    present = sum(source.heldout.tokens > 0 for source in corpus.manifest.sources)
    if not present:
        raise UserError(f"{corpus.directory}: no source has held-out documents; build the corpus with a held-out share")
    return present


def own_turns(batches: Iterable[Batch], rank: int, size: int) -> Iterator[MicroBatch]:
    """Batch i goes to rank i % size; ranks without one in the last turn get a batch whose labels are all ignored."""
    turn: list[Batch] = []
    for batch in batches:
        turn.append(batch)
        if len(turn) == size:
            yield to_micro_batch(turn[rank])
            turn = []
    if turn:
        own = to_micro_batch(turn[min(rank, len(turn) - 1)])
        if rank >= len(turn):
            own.labels.fill_(IGNORE_INDEX)
        yield own


class _Sums:
    """Losses [R, sources], supervised tokens and documents [sources] of this rank."""

    def __init__(self, num_sources: int) -> None:
        self._num_sources = num_sources
        self._losses: torch.Tensor | None = None
        self._counts = torch.zeros(2, num_sources, dtype=torch.float64)

    def add(self, batch: MicroBatch, losses_RBS: torch.Tensor) -> None:
        """Add one batch; `losses_RBS` is 0 where the label is ignored."""
        per_row_RB = losses_RBS.double().sum(dim=-1).cpu()
        if self._losses is None:
            self._losses = torch.zeros(len(per_row_RB), self._num_sources, dtype=torch.float64)
        source_B = batch.source_ids.cpu()
        self._losses.index_add_(1, source_B, per_row_RB)
        supervised = (batch.labels != IGNORE_INDEX).cpu()
        ids_BS = batch.document_ids.cpu()
        documents = [ids[used].unique().numel() for ids, used in zip(ids_BS, supervised, strict=True)]
        counts = torch.stack([supervised.sum(dim=-1), torch.tensor(documents)]).double()
        self._counts.index_add_(1, source_B, counts)

    def total(self, engine: LossEngine) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Sums over the data-parallel ranks (one collective)."""
        assert self._losses is not None
        total = engine.sum_over_data_parallel(torch.cat([self._losses, self._counts])).numpy()
        return total[:-2], np.rint(total[-2]).astype(np.int64), np.rint(total[-1]).astype(np.int64)


def _report(
    sources: Sequence[SourceInfo], losses: np.ndarray, tokens: np.ndarray, documents: np.ndarray
) -> HeldOutReport:
    bytes_ = np.array([_bytes_per_token(source.heldout) for source in sources]) * tokens

    def group(key: Callable[[int], str]) -> dict[str, Loss]:
        members: dict[str, list[int]] = {}
        for index in np.flatnonzero(tokens):
            members.setdefault(key(index), []).append(index)
        return {name: together(members[name]) for name in sorted(members)}

    def together(members: Sequence[int]) -> Loss:
        count = int(tokens[members].sum())
        sums = losses[:, members].sum(axis=1)
        size = float(bytes_[members].sum())
        bits = float(sums[-1]) / math.log(2) / size if size > 0 else None
        return Loss((sums / count).tolist(), count, int(documents[members].sum()), bits)

    return HeldOutReport(
        overall=together(np.flatnonzero(tokens).tolist()),
        by_kind=group(lambda index: sources[index].kind),
        by_language=group(lambda index: sources[index].language),
        by_source=group(lambda index: sources[index].name),
    )


def _bytes_per_token(split: SplitInfo) -> float:
    """Bytes per supervised token of a whole split: every token has a label but one per document."""
    supervised = split.tokens - split.documents
    return split.bytes / supervised if supervised > 0 else 0.0
