"""Forward passes that are looked into: losses of every loop, and telemetry, the same from every layout.

One stage runs the batch as it is. A pipeline takes it as one microbatch per stage (rows are repeated to fill up) and
runs Megatron's own schedule forward only; every microbatch has its own observer, which sees on each rank what happens
there. What only some stages have seen is then told to the others.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.tensor_parallel import (
    gather_from_tensor_model_parallel_region,
    scatter_to_sequence_parallel_region,
)
from torch import Tensor, distributed
from torch.nn import functional as F

from loopcoder_train.config import ModelConfig
from loopcoder_train.engines.engine import MicroBatch
from loopcoder_train.engines.megatron.loops import SingleStage, loop_outputs
from loopcoder_train.engines.megatron.pipeline import LoopPipeline
from loopcoder_train.engines.megatron.recorder import GatheringRecorder, on_every_stage, recorded
from loopcoder_train.engines.megatron.stage import Stage
from loopcoder_train.engines.telemetry import telemetry_values
from loopcoder_train.model import IGNORE_INDEX
from loopcoder_train.model.observer import Observer


class LossReader(Observer):
    """Keeps the token losses of every loop: fp32 [n, B] of this rank's rows, on the last stage."""

    def __init__(self, stage: Stage, labels: Tensor):
        self._stage, self._labels = stage, stage.row_split.cut(labels)
        self.losses: list[Tensor] = []

    def loop_output(self, loop_number: int, hidden: Tensor) -> None:
        """Read h(r) through the final norm and the head."""
        self.losses.append(self._stage.token_losses(hidden, self._labels))


@torch.no_grad()
def token_losses(loops: "SingleStage | LoopPipeline", batch: MicroBatch) -> Tensor:
    """fp32 [R, B, S]: loss of every token read after every loop, on every rank."""
    stage, (rows, length) = loops.stage, batch.input_ids.shape
    readers = _observe(loops, batch, partial(_loss_reader, stage))
    shape = (stage.model.num_loops, rows, length)
    losses = None
    if stage.mesh.is_last_stage:
        local = torch.cat([torch.stack(reader.losses) for reader in readers], dim=2)  # [R, n, B]
        losses = stage.row_split.gather(local, dim=1).transpose(1, 2)[:, :rows, :length]
    return on_every_stage(losses, shape, stage.mesh.num_stages - 1, stage.mesh)


def _loss_reader(stage: Stage, batch: MicroBatch) -> LossReader:
    return LossReader(stage, batch.labels)


@torch.no_grad()
def loop_telemetry(loops: "SingleStage | LoopPipeline", batch: MicroBatch, config: ModelConfig) -> dict[str, float]:
    """:func:`~loopcoder_train.engines.telemetry.telemetry_values` of the batch, on every rank."""
    stage = loops.stage
    records = _observe(loops, batch, lambda _: GatheringRecorder(stage))
    record = recorded(records, stage, batch.input_ids.shape)
    values: list[dict[str, float] | None] = [None]
    if stage.mesh.is_last_stage:
        supervised = batch.labels != IGNORE_INDEX
        values = [telemetry_values(config, record, supervised, partial(_logits, stage))]
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


def _observe(
    loops: "SingleStage | LoopPipeline", batch: MicroBatch, observer_of: Callable[[MicroBatch], Observer]
) -> list[Observer]:
    """Run the loops over `batch`; returns the observers of its microbatches, in the order of the rows."""
    stage = loops.stage
    padded = padded_to(batch, stage.sequence_parts)
    if isinstance(loops, SingleStage):
        observer = observer_of(padded)
        for _ in loop_outputs(stage, padded.input_ids, padded.document_ids, observer):
            pass
        return [observer]
    parts = list(_one_per_stage(padded, stage.mesh.num_stages))
    loops.begin()
    with _observed_by(loops, [observer_of(part) for part in parts]):
        get_forward_backward_func(
            pp_size=stage.mesh.num_stages, vp_size=stage.config.virtual_pipeline_model_parallel_size
        )(
            forward_step_func=_forward_step,
            data_iterator=loops.data(parts),
            model=loops.model,
            num_microbatches=len(parts),
            seq_length=parts[0].input_ids.shape[1],
            micro_batch_size=parts[0].input_ids.shape[0],
            forward_only=True,
            collect_non_loss_data=True,
        )
        return list(loops.observers)


@contextmanager
def _observed_by(loops: LoopPipeline, observers: list[Observer]) -> Iterator[None]:
    """A measuring pass. Megatron's schedules enter DDP's `no_sync` and leave it in backward passes only: here it would
    end when garbage is collected, perhaps amid a later step."""
    config, no_sync = loops.stage.config, loops.stage.config.no_sync_func
    loops.observers, config.no_sync_func = observers, None
    try:
        yield
    finally:
        loops.observers, config.no_sync_func = (), no_sync


def _forward_step(data: Iterator[tuple[int, MicroBatch]], model: torch.nn.Module) -> tuple[Tensor, Callable]:
    return model(*next(data)), lambda output, non_loss_data: None  # observers have seen what is wanted


def _one_per_stage(batch: MicroBatch, stages: int) -> Iterator[MicroBatch]:
    """`stages` microbatches of the same number of rows; the last row is repeated to fill up."""
    rows = len(batch.input_ids)
    each = -(-rows // stages)
    index = torch.arange(stages * each, device=batch.input_ids.device).clamp(max=rows - 1)
    for part in index.split(each):
        yield MicroBatch(*(getattr(batch, name)[part] for name in MicroBatch.__slots__))


def padded_to(batch: MicroBatch, parts: int) -> MicroBatch:
    """Rows made a multiple of `parts` tokens, by tokens at the end that nothing reads."""
    missing = -batch.input_ids.shape[1] % parts
    if missing == 0:
        return batch
    last = batch.document_ids[:, -1:].expand(-1, missing)
    return MicroBatch(
        F.pad(batch.input_ids, (0, missing)),
        F.pad(batch.labels, (0, missing), value=IGNORE_INDEX),
        torch.cat([batch.document_ids, last], dim=1),
        batch.source_ids,
    )
