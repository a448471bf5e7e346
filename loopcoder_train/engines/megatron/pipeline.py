"""Loops as virtual pipeline stages: R thin chunks over the one stage of this rank.

    stage 0          stage 1          ...   last stage
    E -> layers -> | layers ->      |     | layers -> h(1) -> N \
    .------------------------------- wrap-around send ----------'
    a E + b shift(.) -> layers -> | layers ->   | layers -> h(2) ...  -> h(R) -> loss

Megatron's interleaved schedule runs the chunks of its microbatches as separate graphs, loop 1 of a microbatch first in
forward and last in backward on every rank. What later loops read of loop 1 - every layer's K1 and V1, and E on the
first stage - is kept per microbatch as leaves that share loop 1's storage. Later loops leave gradients at the leaves;
:class:`LoopBoundary` hands them to loop 1's graph when its backward pass begins, and the microbatch is forgotten.

With R = 1 there is one chunk and plain 1F1B.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from megatron.core.enums import ModelType
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from loopcoder_train.config import LoopKind
from loopcoder_train.engines.engine import MicroBatch
from loopcoder_train.engines.megatron.stage import BatchGeometry, Stage
from loopcoder_train.model.gated_attention import SharedKV
from loopcoder_train.model.observer import Observer


@dataclass(slots=True)
class Kept:
    """One microbatch between its first and its last visit of this stage."""

    geometry: BatchGeometry
    observer: Observer
    embedding: Tensor | None = None  # first stage only
    shared: list[SharedKV] = field(default_factory=list)  # per layer of this stage
    loops_to_come_back: int = 0  # later loops whose backward pass has not begun

    def tensors(self) -> list[Tensor]:
        """What later loops read."""
        whole = [] if self.embedding is None else [self.embedding]
        return whole + [tensor for kv in self.shared for tensor in (kv.key, kv.value)]

    def as_leaves(self) -> "Kept":
        """The same values as leaves of later graphs."""
        leaf = Kept(self.geometry, self.observer)
        leaf.embedding = None if self.embedding is None else self.embedding.detach().requires_grad_()
        leaf.shared = [SharedKV(*(x.detach().requires_grad_() for x in (kv.key, kv.value))) for kv in self.shared]
        return leaf


@dataclass(frozen=True, slots=True)
class Event:
    """One chunk's forward or backward pass over one microbatch on this rank, in the order they happened."""

    backward: bool
    loop_number: int
    microbatch: int


class LoopPipeline:
    """What one rank keeps while microbatches pass through its stage. See :mod:`loopcoder_train.engines.megatron.loops`
    for the same interface without a pipeline."""

    def __init__(self, stage: Stage):
        self.stage = stage
        self.events: list[Event] | None = None  # a list makes the order of passes be recorded
        self.observers: Sequence[Observer] = ()  # of a measuring pass, by microbatch
        self._kept: dict[int, Kept] = {}
        self.chunks = [LoopChunk(self, number) for number in range(1, stage.model.num_loops + 1)]

    @property
    def model(self) -> "list[LoopChunk] | LoopChunk":
        """What Megatron's schedule is given."""
        return self.chunks if len(self.chunks) > 1 else self.chunks[0]

    def data(self, batches: Sequence[MicroBatch]) -> "list[Iterator] | Iterator":
        """An iterator for every chunk; all see the same microbatches."""
        iterators = [iter(enumerate(batches)) for _ in self.chunks]
        return iterators if len(iterators) > 1 else iterators[0]

    def begin(self) -> None:
        """A new pass: an interrupted one leaves nothing."""
        self._kept.clear()

    @property
    def num_kept(self) -> int:
        """Microbatches that this stage still keeps something of; 0 after a whole pass."""
        return len(self._kept)

    def open(self, microbatch: int, batch: MicroBatch) -> Kept:
        """A microbatch's first visit."""
        observer = self.observers[microbatch] if self.observers else Observer()
        return Kept(self.stage.geometry(batch.input_ids, batch.document_ids), observer)

    def keep(self, microbatch: int, kept: Kept) -> None:
        """Remember it for later loops."""
        self._kept[microbatch] = kept

    def kept(self, microbatch: int) -> Kept:
        """What loop 1 left."""
        return self._kept[microbatch]

    def forget(self, microbatch: int) -> Kept:
        """Take out what loop 1 left."""
        return self._kept.pop(microbatch)

    def record(self, loop_number: int, microbatch: int, *, backward: bool) -> None:
        """Note a pass, if they are noted."""
        if self.events is not None:
            self.events.append(Event(backward, loop_number, microbatch))


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
        received, self._received = self._received, None
        first_visit = number == 1
        kept = pipeline.open(microbatch, batch) if first_visit else pipeline.kept(microbatch)
        if first_visit and stage.mesh.is_first_stage:
            kept.embedding = stage.embed(batch.input_ids)
        x = self._input(kept, received)
        parallel = stage.model.loop_kind is LoopKind.parallel
        shared = kept.shared if parallel and not first_visit else [None] * len(stage.layers)
        pipeline.record(number, microbatch, backward=False)
        hidden, own = stage.run_loop(number, x, shared, kept.geometry, kept.observer)
        if first_visit and parallel:
            kept.shared = own
        return self._output(hidden, kept, microbatch)

    def _input(self, kept: Kept, received: Tensor | None) -> Tensor:
        stage = self.pipeline.stage
        if not stage.mesh.is_first_stage:
            return received
        return stage.loop_input(self.loop_number, kept.embedding, received, kept.geometry, kept.observer)

    def _output(self, hidden: Tensor, kept: Kept, microbatch: int) -> Tensor:
        pipeline, stage, number = self.pipeline, self.pipeline.stage, self.loop_number
        last_visit = number == len(pipeline.chunks)
        if stage.mesh.is_last_stage:
            kept.observer.loop_output(number, hidden)
            if not last_visit:
                hidden = stage.between_loops(hidden)
        if torch.is_grad_enabled():
            return self._differentiable(hidden, kept, microbatch)
        if last_visit and number > 1:
            pipeline.forget(microbatch)
        elif number == 1 and not last_visit:
            pipeline.keep(microbatch, kept)
        return hidden

    def _differentiable(self, hidden: Tensor, kept: Kept, microbatch: int) -> Tensor:
        """The output with its boundary; loop 1 leaves its leaves for the later loops."""
        pipeline, number = self.pipeline, self.loop_number
        if number > 1 or len(pipeline.chunks) == 1:

            def begins() -> Sequence[Tensor]:
                pipeline.record(number, microbatch, backward=True)
                if number > 1:
                    pipeline.kept(microbatch).loops_to_come_back -= 1
                return ()

            return LoopBoundary.apply(hidden, begins)
        leaves = kept.as_leaves()
        leaves.loops_to_come_back = len(pipeline.chunks) - 1
        pipeline.keep(microbatch, leaves)

        def returns() -> Sequence[Tensor]:
            pipeline.record(number, microbatch, backward=True)
            done = pipeline.forget(microbatch)
            assert done.loops_to_come_back == 0, f"loop 1 of microbatch {microbatch} came back before later loops"
            return [leaf.grad for leaf in done.tensors()]

        return LoopBoundary.apply(hidden, returns, *kept.tensors())


class LoopBoundary(torch.autograd.Function):
    """Identity on a chunk's output.

    `begins` is called when the chunk's backward pass does, and returns the gradients that `tensors`, which belong to
    this chunk's graph, got in other graphs: they enter this graph as if its own consumers had sent them.
    """

    @staticmethod
    def forward(ctx, hidden: Tensor, begins: Callable[[], Sequence[Tensor]], *tensors: Tensor) -> Tensor:
        ctx.begins = begins
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return gradient, None, *ctx.begins()
