"""All R loops of a micro-batch in one graph: what runs when there is one pipeline stage.

E -> loop 1 -> h(1), K1, V1 -> a E + b shift(N(h(1))) -> loop 2 (K1, V1) -> ... -> h(R)
"""

from collections.abc import Iterator, Sequence

from megatron.core.enums import ModelType
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from loopcoder_train.config import LoopKind
from loopcoder_train.engines.engine import MicroBatch
from loopcoder_train.engines.megatron.stage import Stage
from loopcoder_train.model.gated_attention import SharedKV
from loopcoder_train.model.observer import Observer


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
    """All loops on one pipeline stage, with the interface of :class:`~.pipeline.LoopPipeline`."""

    def __init__(self, stage: Stage):
        self.stage, self.model = stage, AllLoops(stage)

    def begin(self) -> None:
        """A new pass: nothing is kept between passes."""

    def data(self, batches: Sequence[MicroBatch]) -> Iterator[tuple[int, MicroBatch]]:
        """Numbered microbatches."""
        return iter(enumerate(batches))


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
