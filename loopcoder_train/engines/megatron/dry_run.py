"""One rank of a job of any size, in this process: real groups, the real stage, no memory and no messages.

torch's fake process group answers every collective at once and tensors live on the meta device, so Megatron's mesh of
1,024 ranks and a 7B stage take seconds. Megatron's own schedule runs every loop forward and backward: whatever does not
divide, or has another shape than its neighbour expects, fails here. What the numbers are is not checked; nothing is
computed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from math import prod

import numpy as np
import torch
import torch.distributed._tools.fake_collectives  # makes collectives take meta tensors
from megatron.core import parallel_state
from megatron.core.transformer.module import MegatronModule
from torch import Tensor, distributed
from torch.testing._internal.distributed.fake_pg import FakeStore

from loopcoder_train.config import KernelConfig, ParallelConfig, RunConfig
from loopcoder_train.engines.engine import MicroBatch
from loopcoder_train.engines.megatron import setup
from loopcoder_train.engines.megatron.loops import SingleStage
from loopcoder_train.engines.megatron.mesh import Mesh
from loopcoder_train.engines.megatron.parameters import Part, stage_layout
from loopcoder_train.engines.megatron.pipeline import LoopPipeline
from loopcoder_train.engines.megatron.stage import Stage
from loopcoder_train.model.documents import Documents
from loopcoder_train.model.names import parameter_shapes

META = torch.device("meta")


@dataclass(frozen=True, slots=True)
class DryRank:
    """What was built.

    Attributes:
        groups: ranks of every group that this rank is in, by the group's name in :class:`Mesh`.
        layers: indices of its layers in the whole model.
        parameters, weight_bytes: of its stage.
        message_shape: what goes from stage to stage and loop to loop, [S_local, B, d].
        pieces: parameters of the model, each found to be held exactly once over stages and tensor ranks.
    """

    rank: int
    stage_index: int
    groups: dict[str, list[int]]
    layers: list[int]
    parameters: int
    weight_bytes: int
    message_shape: tuple[int, int, int]
    pieces: int


def dry_run(config: RunConfig, rank: int) -> DryRank:
    """Build and try out rank `rank` of a job of `config.parallel.world_size`. torch.distributed must not be in use.

    Attention kernels that only CUDA has are stood in for by torch's SDPA, which takes and gives the same shapes.

    Raises:
        AssertionError: a shape is wrong, or the ranks' pieces do not cover the model exactly once.
    """
    config = replace(config, kernels=KernelConfig())
    with _fake_job(config.parallel, rank) as mesh:
        stage = _stage(config, mesh)
        shape = _run_passes(config, stage)
        groups = {name: _members(getattr(mesh, name)) for name in ("tensor", "context", "pipeline", "data", "replicas")}
        if mesh.rows is not None:
            groups["rows"] = _members(mesh.rows)
        built = DryRank(
            rank=rank,
            stage_index=mesh.stage_index,
            groups=groups,
            layers=[int(index) for index in stage.layers],
            parameters=sum(parameter.numel() for parameter in stage.parameters()),
            weight_bytes=sum(parameter.numel() * parameter.element_size() for parameter in stage.parameters()),
            message_shape=shape,
            pieces=0,
        )
    return replace(built, pieces=_check_cover(config, built.groups["pipeline"]))


@contextmanager
def _fake_job(parallel: ParallelConfig, rank: int) -> Iterator[Mesh]:
    """This process as one rank of many: Megatron's groups over torch's fake process group."""
    assert not distributed.is_initialized(), "a dry run needs a process of its own"
    current_device, host_starts = torch.cuda.current_device, Documents.host_starts
    distributed.init_process_group("cpu:fake,meta:fake", store=FakeStore(), rank=rank, world_size=parallel.world_size)
    torch.cuda.current_device = lambda: META  # where Megatron makes weights and buffers
    Documents.host_starts = _one_document_per_row  # meta tensors have no values to copy
    try:
        setup.initialize_process_groups(parallel, None)
        yield Mesh.current(parallel.sequence_parallel)
    finally:
        torch.cuda.current_device, Documents.host_starts = current_device, host_starts
        parallel_state.destroy_model_parallel()
        parallel_state.destroy_global_memory_buffer()  # meta tensors that a later engine must not find
        distributed.destroy_process_group()


def _one_document_per_row(documents: Documents) -> np.ndarray:
    starts = np.zeros((documents.batch_size, documents.sequence_length), dtype=bool)
    starts[:, 0] = True
    return starts


def _members(group: distributed.ProcessGroup) -> list[int]:
    return distributed.get_process_group_ranks(group)


def _stage(config: RunConfig, mesh: Mesh) -> Stage:
    return Stage(config, setup.transformer_config(config), mesh, META)


def _run_passes(config: RunConfig, stage: Stage) -> tuple[int, int, int]:
    """A step's schedule over one micro-batch per stage, forward and backward; returns the shape of a message."""
    rows, length, mesh = config.training.micro_batch_size, config.longest_segment.sequence_length, stage.mesh
    inner = length // mesh.context.size()
    shape = (inner // mesh.row_parts, rows, config.model.hidden_size)

    def forward_step(batches: Iterator[tuple[int, MicroBatch]], module: MegatronModule) -> tuple[Tensor, partial]:
        number, batch = next(batches)
        output = module(number, batch)
        assert tuple(output.shape) == shape, (tuple(output.shape), shape)
        return output, partial(loss, batch.labels)

    def loss(labels: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        losses = stage.token_losses(hidden, stage.zigzag.cut(labels))
        assert tuple(losses.shape) == (inner, rows), (tuple(losses.shape), (inner, rows))
        return losses.sum(), torch.ones((), dtype=torch.int), losses.detach()

    loops = SingleStage(stage) if mesh.num_stages == 1 else LoopPipeline(stage)
    loops.run([_batch(rows, length) for _ in range(mesh.num_stages)], forward_step)
    wrong = [
        name for name, weight in stage.named_parameters() if weight.grad is None or weight.grad.shape != weight.shape
    ]
    assert not wrong, f"no gradient, or one of another shape: {wrong}"
    return shape


def _batch(rows: int, length: int) -> MicroBatch:
    ids = torch.empty((rows, length), dtype=torch.int64, device=META)
    return MicroBatch(ids, ids.clone(), ids.clone(), torch.empty(rows, dtype=torch.int64, device=META))


def _check_cover(config: RunConfig, stage_ranks: list[int]) -> int:
    """Lay every stage's parameters out over all tensor ranks: each parameter of the model must be there exactly once.

    Returns the number of parameters.
    """
    found: dict[str, list[Part]] = {}
    for rank in stage_ranks:
        with _fake_job(config.parallel, rank) as mesh:
            stage = _stage(config, mesh)
            for tensor_rank in range(mesh.tensor.size()):
                layout = stage_layout(stage, config.model, tensor_rank, mesh.tensor.size())
                for parameter in layout.values():
                    if parameter.is_copy or (parameter.whole_on_every_rank and tensor_rank > 0):
                        continue
                    for part in parameter.parts:
                        found.setdefault(part.name, []).append(part)
    shapes = parameter_shapes(config.model)
    assert found.keys() == shapes.keys(), f"not held exactly once: {sorted(found.keys() ^ shapes.keys())}"
    for name, shape in shapes.items():
        assert covers(found[name], shape), f"{name} is not covered exactly once"
    return len(shapes)


def covers(parts: list[Part], shape: tuple[int, ...]) -> bool:
    """Whether boxes that are cut along at most one dim fill a tensor of `shape` without overlap."""
    if sum(prod(part.shape) for part in parts) != prod(shape):
        return False
    corners = sorted((part.offsets, tuple(map(sum, zip(part.offsets, part.shape, strict=True)))) for part in parts)
    inside = all(stop <= size for _, end in corners for stop, size in zip(end, shape, strict=True))
    return inside and all(
        any(stop <= start for stop, start in zip(end, begin, strict=True)) for (_, end), (begin, _) in pairwise(corners)
    )
