"""The frozen rows of a plan -> batches: a function of (plan, seed, number of the batch).

The journey of a batch: batch b has positions [b G, (b+1) G); position p is row `permutation(epoch)(p mod n)` of the n
training rows, with epoch = p div n, so every row comes once per epoch, in another order each time; the row's
conversations are laid one after the other, each a document of its own; what is left is padding, a document without
labels. The label of a token is the next one of its conversation, if that is the assistant's. State: the number of the
batch and the hashes that it counts in.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.manifest import SourceInfo
from data_pipeline.permutation import block_permutation
from data_pipeline.stream import IGNORED_LABEL, Batch
from loopcoder_train.config.run import RunConfig
from loopcoder_train.finetune.plan import Plan

_STATE_VERSION = 1
_KIND = "conversation"


class ConversationStream:
    """The batches of a tuning run, for every rank and any number of them.

    Has what the loader, the hooks and checkpoints ask of a stream (`data_pipeline.segments.SegmentedStream`).
    Raises DataError when the plan has fewer training rows than a batch.
    """

    def __init__(self, plan: Plan, *, seed: int, global_batch_size: int) -> None:
        self.plan, self.seed, self.global_batch_size = plan, seed, global_batch_size
        self.batch_sizes = [global_batch_size]
        self.kinds: dict[str, str] = {}  # conversations are neither text nor code
        if plan.train_rows < global_batch_size:
            raise DataError(
                f"training.global_batch_size={global_batch_size}: the conversations fill only {plan.train_rows} row(s) "
                f"of data.sequence_length={plan.sequence_length}, so there would be 0 whole steps per epoch; give more "
                "conversations or a smaller batch"
            )

    def check_epochs(self, num_steps: int, max_epochs: float) -> None:
        """DataError when so many steps pass over the rows more often than `max_epochs`."""
        if self.epochs(num_steps) > max_epochs:  # which may be infinite
            most = int(max_epochs * self.plan.train_rows / self.global_batch_size)
            raise DataError(
                f"training.num_steps={num_steps}: {self.plan.train_rows:,} training rows would be read "
                f"{self.epochs(num_steps):.2f} times, more than finetune.max_epochs={max_epochs:g}; set "
                f"training.num_steps={most} or less, raise finetune.max_epochs, or give more conversations"
            )

    def epochs(self, num_batches: int) -> float:
        """How often the rows were passed over in so many batches."""
        return num_batches * self.global_batch_size / self.plan.train_rows

    def batch_tokens(self, _batch: int) -> int:
        """Positions of one batch, padding included."""
        return self.global_batch_size * self.plan.sequence_length

    def names_of(self, _batch: int) -> list[str]:
        """The sources that the source ids of a batch count."""
        return [source.name for source in self.plan.sources]

    def segment_number(self, _batch: int) -> int:
        """All batches are alike."""
        return 0

    def read(self, batch: int, part: int = 0, parts: int = 1) -> Batch:
        """The `part`-th of `parts` equal contiguous parts of a batch; `parts` must divide its size."""
        size, rest = divmod(self.global_batch_size, parts)
        if rest:
            raise DataError(f"batch {batch}: {self.global_batch_size} rows cannot be cut into {parts} parts")
        first = batch * self.global_batch_size + part * size
        return rows_of(self.plan, [self.row_at(position) for position in range(first, first + size)])

    def row_at(self, position: int) -> int:
        """The row that comes at a position."""
        epoch, place = divmod(position, self.plan.train_rows)
        return block_permutation(self.plan.train_rows, self.seed, "conversations", epoch)(place)

    def prefetch(self, batch: int, part: int = 0, parts: int = 1) -> None:
        """Nothing: the rows lie on a disk."""

    def interrupt(self) -> None:
        """Nothing: no read takes long."""

    def state(self, batch: int) -> dict[str, Any]:
        """What a checkpoint needs to go on at `batch`: < 1 KB of JSON, equal on all ranks."""
        return {
            "version": _STATE_VERSION,
            "kind": "conversations",
            "batch": int(batch),
            "global_batch_size": self.global_batch_size,
            "seed": self.seed,
            "plan_hash": self.plan.plan_hash,
            "tokenizer_hash": self.plan.tokenizer_hash,
        }

    def check_state(self, state: dict[str, Any]) -> int:
        """The batch of a saved state. Raises DataError, naming what differs, if this stream has other batches."""
        batch = state.get("batch")
        if type(batch) is not int or batch < 0:
            raise DataError(f"data state: batch {batch!r}; must be a count, use an older checkpoint")
        own = self.state(batch)
        differing = [key for key in own if state.get(key) != own[key]]
        if differing:
            shown = "; ".join(f"{key} was {str(state.get(key))[:16]}, is {str(own[key])[:16]}" for key in differing)
            raise DataError(
                f"data state: {shown}; the batches would be others: bring back {self.plan.folder} and the run's "
                "options, or start a new run"
            )
        return batch


def open_conversations(config: RunConfig, plan: Plan) -> ConversationStream:
    """The stream of a tuning run. DataError when the plan is too small for its steps."""
    assert config.finetune is not None
    stream = ConversationStream(plan, seed=config.seed, global_batch_size=config.training.global_batch_size)
    stream.check_epochs(config.training.num_steps, config.finetune.max_epochs)
    return stream


def rows_of(plan: Plan, numbers: list[int]) -> Batch:
    """Rows of a plan as a batch, one conversation per document."""
    B, S = len(numbers), plan.sequence_length
    inputs_BS = np.full((B, S), plan.end_of_document_id, dtype=np.int64)
    labels_BS = np.full((B, S), IGNORED_LABEL, dtype=np.int64)
    document_ids_BS = np.zeros((B, S), dtype=np.int32)
    for inputs, labels, document_ids, number in zip(inputs_BS, labels_BS, document_ids_BS, numbers, strict=True):
        position = 0
        conversations = plan.row(number)
        for document, (tokens, supervised) in enumerate(conversations):
            end = position + len(tokens)
            inputs[position:end] = tokens
            labels[position : end - 1] = np.where(supervised[1:], tokens[1:].astype(np.int64), IGNORED_LABEL)
            document_ids[position:end] = document
            position = end
        document_ids[position:] = len(conversations)
    source_ids = np.asarray(plan.row_sources)[numbers].astype(np.int32)
    return Batch(input_ids=inputs_BS, labels=labels_BS, document_ids=document_ids_BS, source_ids=source_ids)


def heldout_rows(plan: Plan, batch_size: int, max_rows_per_source: int | None) -> Iterator[Batch]:
    """The held-out rows, source after source, at most so many of each; the same on every call.

    Rows are packed longest conversation first, so a part of them is taken evenly, not from the beginning.
    """
    held_out = range(plan.train_rows, plan.num_rows)
    chosen: list[int] = []
    for source in range(len(plan.sources)):
        own = [row for row in held_out if plan.row_sources[row] == source]
        count = len(own) if max_rows_per_source is None else min(len(own), max_rows_per_source)
        chosen += [own[number * len(own) // count] for number in range(count)]
    for start in range(0, len(chosen), batch_size):
        yield rows_of(plan, chosen[start : start + batch_size])


def heldout_sources(plan: Plan) -> list[SourceInfo]:
    """The sources as an evaluation groups by them; how many bytes a token has is not known."""
    return [SourceInfo(name=source.name, kind=_KIND, language=source.name) for source in plan.sources]
