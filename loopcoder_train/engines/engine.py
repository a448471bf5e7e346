"""The protocol between the training loop and whatever runs the model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from loopcoder_train.model.state import TensorShard


@dataclass(slots=True)
class MicroBatch:
    """Sequences of one forward pass on one data-parallel rank.

    `input_ids`, `labels`, `document_ids`: int64 [B, S]. `labels` holds `IGNORE_INDEX` where nothing is predicted (after
    the end of a document, padding). `document_ids` never decreases inside a row. `source_ids`: int64 [B], index of each
    row's source in the corpus manifest.
    """

    input_ids: Tensor
    labels: Tensor
    document_ids: Tensor
    source_ids: Tensor


@dataclass(slots=True)
class StepResult:
    """What one optimizer step did, equal on every rank."""

    loss: float  # nats per supervised token of the whole global batch
    supervised_tokens: int  # of the whole global batch
    grad_norm: float  # global L2 norm before clipping


class Engine(Protocol):
    """One model being trained over this job's processes. Every rank calls every method, in the same order."""

    data_parallel_rank: int
    data_parallel_size: int

    def train_step(self, micro_batches: Sequence[MicroBatch], learning_rate: float) -> StepResult:
        """Forward and backward over this rank's micro-batches, then one AdamW step at `learning_rate`.

        Loss = sum of token losses / supervised tokens of the global batch, whatever the split into micro-batches.
        """
        ...

    def token_losses(self, batch: MicroBatch) -> Tensor:
        """Loss of every token if each loop were the last: fp32 [R, B, S], 0 where the label is ignored. No gradients.

        Loop r < R is read through the final norm and the head (logit lens); row R-1 is the model's own loss.
        """
        ...

    def loop_telemetry(self, batch: MicroBatch) -> dict[str, float]:
        """Telemetry of `diagnostics`' cheap kind on one batch, keys like `loop2/gate_mean`, equal on every rank."""
        ...

    def sum_over_data_parallel(self, tensor: Tensor) -> Tensor:
        """Sum of `tensor` over the data-parallel ranks (on the caller's device and dtype); identity on one rank."""
        ...

    def max_over_ranks(self, tensor: Tensor) -> Tensor:
        """Element-wise maximum of `tensor` over all ranks of the job (on the caller's device and dtype)."""
        ...

    def state_shards(self, *, loading: bool) -> list[TensorShard]:
        """Weights and optimizer state under layout-free names.

        For saving: fp32 weights (`model/...`) and both Adam moments, each element owned once. For loading: in
        addition every live copy that must be filled (the bf16 weights of all replicas). Created if not yet there.
        """
        ...

    def state_scalars(self) -> dict[str, int | float]:
        """What is not a tensor: `{"optimizer_step": n}`. JSON-able."""
        ...

    def load_state_scalars(self, scalars: dict[str, int | float]) -> None:
        """Restore `state_scalars()`; called after every loading shard has been filled."""
        ...
