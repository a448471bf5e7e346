"""The weights and AdamW state of one rank under layout-free names; DeepSpeed's own checkpoints are not used.

ZeRO gives every element of the fp32 weights and moments to exactly one rank, which owns it here as well.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from loopcoder_train.engines.deepspeed.partitions import Partitions
from loopcoder_train.model.state import FIRST_MOMENT_PREFIX, MODEL_PREFIX, SECOND_MOMENT_PREFIX, TensorShard


class OptimizerState:
    """`adam`: the AdamW inside of ZeRO, whose state is kept by flat tensor."""

    def __init__(self, partitions: Partitions, adam: torch.optim.AdamW):
        self._partitions, self._adam = partitions, adam
        self._pieces = list(partitions.pieces())
        self._mains = {id(piece.main): piece.main for piece in self._pieces}.values()

    def weight_shards(self, *, loading: bool) -> Iterator[TensorShard]:
        """fp32 weights; for loading also the live ones, which are other tensors in every stage and precision."""
        for piece in self._pieces:
            yield from piece.shards(MODEL_PREFIX, piece.main)
        if loading:
            yield from self._partitions.live_shards(MODEL_PREFIX)

    def moment_shards(self) -> Iterator[TensorShard]:
        """Both Adam moments, made if they are not there."""
        for piece in self._pieces:
            state = self._adam_state(piece.main)
            yield from piece.shards(FIRST_MOMENT_PREFIX, state["exp_avg"])
            yield from piece.shards(SECOND_MOMENT_PREFIX, state["exp_avg_sq"])

    @property
    def step(self) -> int:
        """Optimizer steps taken, as Adam's bias correction counts them. A rank without a piece counts 0."""
        return max((int(self._adam_state(main)["step"]) for main in self._mains), default=0)

    @step.setter
    def step(self, step: int) -> None:
        for main in self._mains:
            self._adam_state(main)["step"].fill_(step)

    def _adam_state(self, main: Tensor) -> dict[str, Tensor]:
        """A flat tensor's optimizer state, made as fused AdamW would at its first step."""
        state = self._adam.state[main]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=main.device)
            state["exp_avg"] = torch.zeros_like(main, requires_grad=False)
            state["exp_avg_sq"] = torch.zeros_like(main, requires_grad=False)
        return state
