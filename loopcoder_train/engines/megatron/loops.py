"""How loops run over microbatches: the interface, and all R loops in one graph, for one pipeline stage.

E -> loop 1 -> h(1), K1, V1 -> a E + b shift(N(h(1))) -> loop 2 (K1, V1) -> ... -> h(R)

`pipeline.py` has the other way to run them.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from megatron.core.enums import ModelType
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from loopcoder_train.config import LoopKind
from loopcoder_train.engines.engine import MicroBatch
from loopcoder_train.engines.megatron.stage import Stage
from loopcoder_train.model.gated_attention import SharedKV
from loopcoder_train.model.observer import Observer

# Megatron's forward step: (numbered microbatches, module) -> the module's output, and what makes a loss of it
ForwardStep = Callable[[Iterator[tuple[int, MicroBatch]], MegatronModule], tuple[Tensor, Callable]]


class Loops(Protocol):
    """All loops of the microbatches of a step, over this rank's stage."""

    stage: Stage

    def run(self, batches: Sequence[MicroBatch], forward_step: ForwardStep) -> list[Tensor]:
        """Forward and backward over `batches`, gradients finalized; the losses' reports, on the last stage only."""
        ...

    def observe(self, batch: MicroBatch, observer_of: Callable[[MicroBatch], Observer]) -> list[Observer]:
        """Forward only; returns the observers of the microbatches that `batch` was cut into, in the order of rows."""
        ...


def loop_outputs(
    stage: Stage, input_ids: Tensor, document_ids: Tensor | None, observer: Observer | None = None
) -> Iterator[Tensor]:
    """Run the loops one by one: yields h(r) [S_local, B, d] for r = 1..R, from ids [B, S]."""
    observer = observer or Observer()
    geometry = stage.geometry(input_ids, document_ids)
    embedding, hidden = stage.embed(input_ids), None
    shared: list[SharedKV | None] = [None] * len(stage.layers)
    for loop_number in range(1, stage.model.num_loops + 1):
        previous = None if hidden is None else stage.between_loops(hidden)
        x = stage.loop_input(loop_number, embedding, previous, geometry, observer)
        hidden, own = stage.run_loop(loop_number, x, shared, geometry, observer)
        observer.loop_output(loop_number, hidden)
        yield hidden
        if loop_number == 1 and stage.model.loop_kind is LoopKind.parallel:
            shared = own


class SingleStage:
    """See :class:`Loops`: gradients of microbatch after microbatch add up."""

    def __init__(self, stage: Stage):
        self.stage, self._model = stage, AllLoops(stage)

    def run(self, batches: Sequence[MicroBatch], forward_step: ForwardStep) -> list[Tensor]:
        """See :class:`Loops`."""
        return run_schedule(self.stage, self._model, iter(enumerate(batches)), batches, forward_step)

    def observe(self, batch: MicroBatch, observer_of: Callable[[MicroBatch], Observer]) -> list[Observer]:
        """See :class:`Loops`; the batch is one microbatch."""
        observer = observer_of(batch)
        for _ in loop_outputs(self.stage, batch.input_ids, batch.document_ids, observer):
            pass
        return [observer]


class AllLoops(MegatronModule):
    """What Megatron's schedule sees: one model chunk with every loop. It views the stage, DDP owns it."""

    def __init__(self, stage: Stage):
        super().__init__(stage.config)
        self.model_type = ModelType.encoder_or_decoder
        object.__setattr__(self, "stage", stage)  # not a submodule: its parameters are the stage's

    def set_input_tensor(self, tensors: list[Tensor | None]) -> None:
        """Megatron hands over what the previous pipeline stage sent; the only stage gets nothing."""
        assert all(tensor is None for tensor in tensors)

    def forward(self, microbatch: int, batch: MicroBatch) -> Tensor:
        """h(R), [S_local, B, d]."""
        *_, hidden = loop_outputs(self.stage, batch.input_ids, batch.document_ids)
        return hidden


def run_schedule(
    stage: Stage, model: object, data: object, batches: Sequence[MicroBatch], forward_step: ForwardStep, **options: bool
) -> list[Tensor]:
    """Megatron's schedule: accumulation on one stage, 1F1B for R = 1, interleaved 1F1B otherwise.

    `model` and `data` are one module and one iterator, or a list of both where every loop is a chunk.
    """
    schedule = get_forward_backward_func(
        pp_size=stage.mesh.num_stages, vp_size=stage.config.virtual_pipeline_model_parallel_size
    )
    rows, length = batches[0].input_ids.shape
    return schedule(
        forward_step_func=forward_step,
        data_iterator=data,
        model=model,
        num_microbatches=len(batches),
        seq_length=length,
        micro_batch_size=rows,
        **({"forward_only": False} | options),
    )
