"""Forward passes that are looked into: losses of every loop, and telemetry, the same from every layout.

Every microbatch has its own observer, which sees on each rank what happens there; what only some stages have seen is
then told to those that need it.
"""

from functools import partial

import torch
from megatron.core.tensor_parallel import (
    gather_from_tensor_model_parallel_region,
    scatter_to_sequence_parallel_region,
)
from torch import Tensor, distributed
from torch.nn import functional as F

from loopcoder_train.config import ModelConfig
from loopcoder_train.engines.engine import MicroBatch
from loopcoder_train.engines.megatron.loops import Loops
from loopcoder_train.engines.megatron.recorder import GatheringRecorder, from_stage, recorded
from loopcoder_train.engines.megatron.stage import Stage
from loopcoder_train.engines.telemetry import telemetry_values
from loopcoder_train.model import IGNORE_INDEX
from loopcoder_train.model.observer import Observer


class LossReader(Observer):
    """Keeps the token losses of every loop: fp32 [n, B] of this rank's rows, on the last stage."""

    def __init__(self, stage: Stage, labels: Tensor):
        self._stage, self._labels = stage, stage.zigzag.cut(labels)
        self.losses: list[Tensor] = []

    def loop_output(self, loop_number: int, hidden: Tensor) -> None:
        """Read h(r) through the final norm and the head."""
        self.losses.append(self._stage.token_losses(hidden, self._labels))


@torch.no_grad()
def token_losses(loops: Loops, batch: MicroBatch) -> Tensor:
    """fp32 [R, B, S]: loss of every token read after every loop, on every rank."""
    stage, (rows, length) = loops.stage, batch.input_ids.shape
    readers = loops.observe(padded_to(batch, stage.padded_length(length)), lambda part: LossReader(stage, part.labels))
    shape = (stage.model.num_loops, rows, length)
    losses = None
    if stage.mesh.is_last_stage:
        local = torch.cat([torch.stack(reader.losses) for reader in readers], dim=2)  # [R, n, B]
        losses = stage.zigzag.gather(local, dim=1).transpose(1, 2)[:, :rows, :length]
    return from_stage(losses, shape, stage.mesh.num_stages - 1, stage, torch.float32)


@torch.no_grad()
def loop_telemetry(loops: Loops, batch: MicroBatch, config: ModelConfig) -> dict[str, float]:
    """:func:`~loopcoder_train.engines.telemetry.telemetry_values` of the batch, on every rank."""
    stage = loops.stage
    padded = padded_to(batch, stage.padded_length(batch.input_ids.shape[1]))
    records = loops.observe(padded, lambda _: GatheringRecorder(stage))
    record = recorded(records, stage, batch.input_ids.shape)
    values: list[dict[str, float] | None] = [None]
    if stage.mesh.is_last_stage:
        supervised = batch.labels != IGNORE_INDEX
        values = [telemetry_values(config, record, supervised, partial(_logits, stage))]
    if stage.mesh.num_stages > 1:
        last = distributed.get_global_rank(stage.mesh.pipeline, stage.mesh.num_stages - 1)
        distributed.broadcast_object_list(values, src=last, group=stage.mesh.pipeline)
    return values[0]


def _logits(stage: Stage, states: Tensor) -> Tensor:
    """[B, S, V] from whole states [B, S, d], on the last stage."""
    length, parts = states.shape[1], stage.mesh.row_parts
    rows = F.pad(states, (0, 0, 0, -length % parts)).transpose(0, 1).contiguous()
    if parts > 1:
        rows = scatter_to_sequence_parallel_region(rows, group=stage.mesh.tensor)
    logits = gather_from_tensor_model_parallel_region(stage.local_logits(rows), group=stage.mesh.tensor)
    return logits.transpose(0, 1)[:, :length]


def padded_to(batch: MicroBatch, length: int) -> MicroBatch:
    """Rows made `length` tokens long, by tokens at the end that nothing reads."""
    missing = length - batch.input_ids.shape[1]
    if missing == 0:
        return batch
    last = batch.document_ids[:, -1:].expand(-1, missing)
    return MicroBatch(
        F.pad(batch.input_ids, (0, missing)),
        F.pad(batch.labels, (0, missing), value=IGNORE_INDEX),
        torch.cat([batch.document_ids, last], dim=1),
        batch.source_ids,
    )
