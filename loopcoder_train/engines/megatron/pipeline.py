"""Loops as virtual pipeline stages: R thin chunks over the one stage of this rank.

    stage 0          stage 1          ...   last stage
    E -> layers -> | layers ->      |     | layers -> h(1) -> N \
    .------------------------------- wrap-around send ----------'
    a E + b shift(.) -> layers -> | layers ->   | layers -> h(2) ...  -> h(R) -> loss

Megatron's interleaved schedule runs the chunks of its microbatches as separate graphs, loop 1 of a microbatch first in
forward and last in backward on every rank. What later loops read of loop 1 - every layer's K1 and V1, and E on the
first stage - is remembered per microbatch as leaves that share loop 1's storage. Later loops leave gradients at the
leaves; :class:`LoopBoundary` hands them to loop 1's graph when its backward pass begins, and the microbatch is
forgotten.

With R = 1 there is one chunk and plain 1F1B.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from megatron.core.enums import ModelType
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from loopcoder_train.config import LoopKind
from loopcoder_train.engines.engine import MicroBatch
from loopcoder_train.engines.megatron.loops import ForwardStep, run_schedule
from loopcoder_train.engines.megatron.stage import BatchGeometry, Stage
from loopcoder_train.model.gated_attention import SharedKV
from loopcoder_train.model.observer import Observer


@dataclass(slots=True)
class FromLoopOne:
    """What one microbatch keeps on this stage between its first and its last visit."""

    geometry: BatchGeometry
    observer: Observer
    embedding: Tensor | None = None  # first stage only
    shared: list[SharedKV] = field(default_factory=list)  # per layer of this stage
    loops_to_come_back: int = 0  # later loops whose backward pass has not begun

    def tensors(self) -> list[Tensor]:
        """What later loops read."""
        whole = [] if self.embedding is None else [self.embedding]
        return whole + [tensor for kv in self.shared for tensor in (kv.key, kv.value)]

    def as_leaves(self, later_loops: int) -> "FromLoopOne":
        """The same values as leaves of the graphs of `later_loops` loops."""
        leaf = FromLoopOne(self.geometry, self.observer, loops_to_come_back=later_loops)
        leaf.embedding = None if self.embedding is None else self.embedding.detach().requires_grad_()
        leaf.shared = [SharedKV(*(x.detach().requires_grad_() for x in (kv.key, kv.value))) for kv in self.shared]
        return leaf


@dataclass(frozen=True, slots=True)
class Pass:
    """One loop's forward or backward pass over one microbatch on this rank."""

    backward: bool
    loop_number: int
    microbatch: int


class LoopPipeline:
    """See :class:`~loopcoder_train.engines.megatron.loops.Loops`: microbatches follow each other through the stages.

    `on_pass` is called as each pass begins.
    """

    def __init__(self, stage: Stage):
        self.stage = stage
        self.on_pass: Callable[[Pass], None] = lambda _: None
        self.observers: Sequence[Observer] = ()  # of a measuring pass, by microbatch
        self.memory: dict[int, FromLoopOne] = {}  # by microbatch; empty between steps
        self._chunks = [LoopChunk(self, number) for number in range(1, stage.model.num_loops + 1)]

    @property
    def num_loops(self) -> int:
        """R."""
        return len(self._chunks)

    def run(self, batches: Sequence[MicroBatch], forward_step: ForwardStep, **options: bool) -> list[Tensor]:
        """See :class:`~loopcoder_train.engines.megatron.loops.Loops`; `options` are the schedule's."""
        self.memory.clear()  # an interrupted step leaves nothing
        model, data = self._chunks, [iter(enumerate(batches)) for _ in self._chunks]
        if self.num_loops == 1:
            (model,), (data,) = model, data
        return run_schedule(self.stage, model, data, batches, forward_step, **options)

    def observe(self, batch: MicroBatch, observer_of: Callable[[MicroBatch], Observer]) -> list[Observer]:
        """See :class:`~loopcoder_train.engines.megatron.loops.Loops`; one microbatch per stage, the last row repeated.

        Megatron's schedules enter DDP's `no_sync` and leave it in backward passes only: here it would end when garbage
        is collected, perhaps amid a later step, so it is taken out.
        """
        parts = list(_one_per_stage(batch, self.stage.mesh.num_stages))
        config, no_sync = self.stage.config, self.stage.config.no_sync_func
        observers = self.observers = [observer_of(part) for part in parts]
        config.no_sync_func = None
        try:
            self.run(parts, _observed_step, forward_only=True, collect_non_loss_data=True)
        finally:
            self.observers, config.no_sync_func = (), no_sync
        return observers

    def first_visit(self, microbatch: int, batch: MicroBatch) -> FromLoopOne:
        """What loop 1 begins to fill."""
        observer = self.observers[microbatch] if self.observers else Observer()
        return FromLoopOne(self.stage.geometry(batch.input_ids, batch.document_ids), observer)


def _observed_step(data: Iterator[tuple[int, MicroBatch]], chunk: "LoopChunk") -> tuple[Tensor, Callable]:
    return chunk(*next(data)), lambda output, non_loss_data: None  # observers have seen what is wanted


def _one_per_stage(batch: MicroBatch, stages: int) -> Iterator[MicroBatch]:
    """`stages` microbatches of the same number of rows; the last row is repeated to fill up."""
    rows = len(batch.input_ids)
    each = -(-rows // stages)
    index = torch.arange(stages * each, device=batch.input_ids.device).clamp(max=rows - 1)
    for part in index.split(each):
        yield MicroBatch(*(getattr(batch, name)[part] for name in MicroBatch.__slots__))


class LoopChunk(MegatronModule):
    """One loop of this rank's stage: what Megatron takes for a virtual pipeline chunk. DDP owns the stage, not this."""

    def __init__(self, pipeline: LoopPipeline, loop_number: int):
        super().__init__(pipeline.stage.config)
        self.model_type = ModelType.encoder_or_decoder
        self.loop_number = loop_number
        object.__setattr__(self, "pipeline", pipeline)  # not a submodule: its parameters are the stage's
        if pipeline.stage.model.num_loops > 1:
            self.vp_stage = loop_number - 1  # Megatron's name for the chunk's index
        self._received: Tensor | None = None

    def set_input_tensor(self, tensors: list[Tensor | None]) -> None:
        """Megatron hands over what the stage before sent, [S_local, B, d]; nothing to the first stage in loop 1."""
        (self._received,) = tensors

    def forward(self, microbatch: int, batch: MicroBatch) -> Tensor:
        """This rank's layers in this loop, [S_local, B, d]: what the next stage, or the next loop, receives."""
        pipeline, stage, number = self.pipeline, self.pipeline.stage, self.loop_number
        pipeline.on_pass(Pass(False, number, microbatch))
        received, self._received = self._received, None
        first_visit, parallel = number == 1, stage.model.loop_kind is LoopKind.parallel
        known = pipeline.first_visit(microbatch, batch) if first_visit else pipeline.memory[microbatch]
        if first_visit and stage.mesh.is_first_stage:
            known.embedding = stage.embed(batch.input_ids)
        x = received
        if stage.mesh.is_first_stage:
            x = stage.loop_input(number, known.embedding, received, known.geometry, known.observer)
        shared = known.shared if parallel and not first_visit else [None] * len(stage.layers)
        hidden, own = stage.run_loop(number, x, shared, known.geometry, known.observer)
        if first_visit and parallel:
            known.shared = own
        if stage.mesh.is_last_stage:
            known.observer.loop_output(number, hidden)
            if number < pipeline.num_loops:
                hidden = stage.between_loops(hidden)
        if torch.is_grad_enabled():
            return self._with_boundary(hidden, known, microbatch)
        if number == pipeline.num_loops:
            pipeline.memory.pop(microbatch, None)  # R = 1 has left nothing
        elif first_visit:
            pipeline.memory[microbatch] = known
        return hidden

    def _with_boundary(self, hidden: Tensor, known: FromLoopOne, microbatch: int) -> Tensor:
        """The output with its boundary; loop 1 leaves leaves for the later loops."""
        if self.loop_number > 1 or self.pipeline.num_loops == 1:
            return LoopBoundary.apply(hidden, partial(self._comes_back, microbatch))
        self.pipeline.memory[microbatch] = known.as_leaves(self.pipeline.num_loops - 1)
        return LoopBoundary.apply(hidden, partial(self._comes_back, microbatch), *known.tensors())

    def _comes_back(self, microbatch: int) -> Sequence[Tensor | None]:
        """This loop's backward pass begins; loop 1's takes what the others left at the leaves."""
        memory, number = self.pipeline.memory, self.loop_number
        self.pipeline.on_pass(Pass(True, number, microbatch))
        if number > 1:
            memory[microbatch].loops_to_come_back -= 1
        if number > 1 or self.pipeline.num_loops == 1:
            return ()
        known = memory.pop(microbatch)
        assert known.loops_to_come_back == 0, f"loop 1 of microbatch {microbatch} came back before later loops"
        return [leaf.grad for leaf in known.tensors()]


class LoopBoundary(torch.autograd.Function):
    """Identity on a chunk's output.

    `begins` is called when the chunk's backward pass does, and returns the gradients that `tensors`, which belong to
    this chunk's graph, got in other graphs: they enter this graph as if its own consumers had sent them.
    """

    @staticmethod
    def forward(ctx, hidden: Tensor, begins: Callable[[], Sequence[Tensor | None]], *tensors: Tensor) -> Tensor:
        ctx.begins = begins
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return gradient, None, *ctx.begins()
