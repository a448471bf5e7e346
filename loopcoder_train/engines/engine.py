"""The protocol between the training loop and whatever runs the model."""

import math
from collections.abc import Callable, Iterator, Sequence
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

    loss: float  # nats per supervised token of the whole global batch; NaN when there is none
    supervised_tokens: int  # of the whole global batch
    grad_norm: float  # global L2 norm before clipping
    updated: bool = True  # false: the step was refused, and weights, moments and Adam's step are as before


def mean_loss(loss_sum: float, supervised_tokens: int) -> float:
    """Nats per supervised token; NaN for a batch without any (every block of it is damaged): it has no loss."""
    return loss_sum / supervised_tokens if supervised_tokens else math.nan


# Looks at a step whose gradients are there and whose update is not yet made: may it be? Every rank is asked at the same
# moment and all must answer alike; the answer may need collectives.
Accept = Callable[[StepResult], bool]


def accept_every_step(_: StepResult) -> bool:
    """The judgement of whoever has none."""
    return True


class Engine(Protocol):
    """One model being trained over this job's processes. Every rank calls every method, in the same order."""

    data_parallel_rank: int
    data_parallel_size: int
    replica_id: int  # ranks with the same number hold the same weights, bit for bit
    own_seconds: float  # of the last step: until this rank could only wait for the other replicas' gradients

    def train_step(
        self, micro_batches: Sequence[MicroBatch], learning_rate: float, accept: Accept = accept_every_step
    ) -> StepResult:
        """Forward and backward over this rank's micro-batches, then one AdamW step at `learning_rate` if `accept`ed.

        Loss = sum of token losses / supervised tokens of the global batch, whatever the split into micro-batches. A
        step that is refused leaves no trace but its result.
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

    def replicated_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """What every rank of this `replica_id` holds bit for bit, with names for people; collective.

        The live weights; their fp32 masters and both moments too, unless each lies on one rank only.
        """
        ...

    def own_gradient_fingerprint(self, micro_batches: Sequence[MicroBatch]) -> int:
        """Fingerprint of the gradients that this rank gets from `micro_batches`, before they are summed over replicas.

        Changes no weight; overwrites the gradients of the last step.
        """
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
