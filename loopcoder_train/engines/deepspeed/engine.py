"""The plain PLT under ZeRO behind the engine protocol.

micro-batches -> forward, backward by DeepSpeed (loss SUM x ranks / global supervised tokens: its mean over ranks then
leaves the sum / tokens) -> norm, which may be refused -> DeepSpeed's step: clip, AdamW on this rank's fp32 part,
weights gathered (stages 1, 2) or left where they are (stage 3)
"""

from collections.abc import Iterator, Sequence

import torch
from deepspeed.accelerator import get_accelerator
from torch import Tensor, distributed

from loopcoder_train.config import RunConfig
from loopcoder_train.engines.deepspeed import setup
from loopcoder_train.engines.deepspeed.partitions import partitions_of
from loopcoder_train.engines.deepspeed.state import OptimizerState
from loopcoder_train.engines.engine import Accept, MicroBatch, StepResult, accept_every_step, mean_loss
from loopcoder_train.engines.fingerprint import combined, fingerprint
from loopcoder_train.engines.stopwatch import Stopwatch
from loopcoder_train.engines.telemetry import LoopRecorder, telemetry_values
from loopcoder_train.model import IGNORE_INDEX, PLT
from loopcoder_train.model.init import initial_value
from loopcoder_train.model.loss import count_supervised, token_losses
from loopcoder_train.model.state import MODEL_PREFIX, TensorShard, fill
from loopcoder_train.runtime.distributed import reduced


class ZeroEngine:
    """See :class:`~loopcoder_train.engines.engine.Engine`. Every rank has its own sequences: data parallel only.

    The caller has initialised torch.distributed with `config.parallel.world_size` processes and chosen `device`.
    """

    def __init__(self, config: RunConfig, device: torch.device):
        self.config, self.device = config, device
        assert get_accelerator().device_name() == device.type, "training.device=cpu needs CUDA_VISIBLE_DEVICES=''"
        self.data_parallel_rank, self.data_parallel_size = distributed.get_rank(), distributed.get_world_size()
        # Under stage 3 nobody holds the same as another.
        self.replica_id = self.data_parallel_rank if config.deepspeed.zero_stage == 3 else 0
        self._engine = setup.initialize(config, device)
        self._model: PLT = self._engine.module.model
        self._names = {parameter: name for name, parameter in self._model.named_parameters()}
        self._partitions = partitions_of(self._engine.optimizer, self._names)
        self._state = OptimizerState(self._partitions, self._engine.basic_optimizer)
        self._stopwatch = Stopwatch(device)
        fill(self._state.weight_shards(loading=True), self._initial_value)

    @property
    def own_seconds(self) -> float:
        """Seconds of the last step's passes. ZeRO sums gradients inside of them, so waits for other ranks count."""
        return self._stopwatch.seconds

    def train_step(
        self, micro_batches: Sequence[MicroBatch], learning_rate: float, accept: Accept = accept_every_step
    ) -> StepResult:
        """One AdamW step over this rank's `micro_batches` and those of the other ranks, if `accept` lets it be made.

        DeepSpeed itself never makes a step whose gradient is not finite.
        """
        self._stopwatch.start()
        loss, supervised = self._forward_backward(micro_batches)
        self._stopwatch.stop()
        result = StepResult(loss=loss, supervised_tokens=supervised, grad_norm=self._partitions.gradient_norm())
        result.updated = accept(result) and self._update(learning_rate)
        if not result.updated:
            self._partitions.discard()
        return result

    def _update(self, learning_rate: float) -> bool:
        """DeepSpeed's step; whether it was made."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        self._engine.step()
        return self._engine.was_step_applied()

    def _forward_backward(self, micro_batches: Sequence[MicroBatch]) -> tuple[float, int]:
        """Loss (nats per supervised token of the global batch) and that number of tokens; gradients stay in ZeRO."""
        supervised = torch.stack([count_supervised(batch.labels) for batch in micro_batches]).sum()
        supervised = int(self.sum_over_data_parallel(supervised))
        scale = self.data_parallel_size / max(supervised, 1)
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        for number, batch in enumerate(micro_batches, start=1):
            self._engine.set_gradient_accumulation_boundary(number == len(micro_batches))
            own = self._engine(_loss_sum, self._on_device(batch))
            self._engine.backward(own * scale)
            loss_sum += own.detach()
        return mean_loss(float(self.sum_over_data_parallel(loss_sum)), supervised), supervised

    @torch.no_grad()
    def token_losses(self, batch: MicroBatch) -> Tensor:
        """fp32 [R, B, S]: loss of every token read after every loop."""
        return self._engine.module(_losses_of_loops, self._on_device(batch))

    @torch.no_grad()
    def loop_telemetry(self, batch: MicroBatch) -> dict[str, float]:
        """See :func:`~loopcoder_train.engines.telemetry.telemetry_values`; the mean over the ranks."""
        values = self._engine.module(_telemetry, self._on_device(batch))
        total = self.sum_over_data_parallel(torch.tensor(list(values.values()), dtype=torch.float64))
        return dict(zip(values, (total / self.data_parallel_size).tolist(), strict=True))

    def replicated_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Stages 1 and 2: the live weights; masters and moments lie on one rank each. Stage 3: nothing."""
        return ((f"live {name}", weight) for name, weight in self._partitions.whole_weights())

    def own_gradient_fingerprint(self, micro_batches: Sequence[MicroBatch]) -> int:
        """See :mod:`~loopcoder_train.engines.fingerprint`. Holds the whole gradient of one micro-batch meanwhile.

        The gradients go past ZeRO, which would sum them over the ranks.
        """
        parameters, found = list(self._names), []
        for batch in micro_batches:
            loss = self._engine.module(_loss_sum, self._on_device(batch))
            found += map(fingerprint, torch.autograd.grad(loss, parameters))
        return int(combined(found))

    def sum_over_data_parallel(self, tensor: Tensor) -> Tensor:
        """Sum over the ranks; back on the caller's device."""
        return tensor if self.data_parallel_size == 1 else reduced(tensor, self.device)

    def max_over_ranks(self, tensor: Tensor) -> Tensor:
        """Element-wise maximum over all ranks; back on the caller's device."""
        return reduced(tensor, self.device, distributed.ReduceOp.MAX)

    def state_shards(self, *, loading: bool) -> list[TensorShard]:
        """Weights and Adam moments under layout-free names; loading needs no communication afterwards."""
        return [*self._state.weight_shards(loading=loading), *self._state.moment_shards()]

    def state_scalars(self) -> dict[str, int | float]:
        """`{"optimizer_step": n}`, the same on every rank."""
        return {"optimizer_step": int(self.max_over_ranks(torch.tensor(self._state.step)))}

    def load_state_scalars(self, scalars: dict[str, int | float]) -> None:
        """Restore the step that Adam's bias correction counts."""
        self._state.step = int(scalars["optimizer_step"])

    def close(self) -> None:
        """Take DeepSpeed's hooks and buffers away; torch.distributed stays the caller's."""
        self._engine.destroy()

    def _initial_value(self, name: str, shape: tuple[int, ...]) -> Tensor:
        return initial_value(name.removeprefix(MODEL_PREFIX), shape, self.config.model, self.config.seed)

    def _on_device(self, batch: MicroBatch) -> MicroBatch:
        return MicroBatch(*(getattr(batch, name).to(self.device, non_blocking=True) for name in MicroBatch.__slots__))


def _loss_sum(model: PLT, batch: MicroBatch) -> Tensor:
    """Sum of the token losses, to differentiate."""
    return token_losses(model(batch.input_ids, batch.document_ids), batch.labels).sum()


def _losses_of_loops(model: PLT, batch: MicroBatch) -> Tensor:
    loops = model.loops(batch.input_ids, batch.document_ids)
    return torch.stack([token_losses(model.logits(hidden), batch.labels) for hidden, _ in loops])


def _telemetry(model: PLT, batch: MicroBatch) -> dict[str, float]:
    record = LoopRecorder()
    model(batch.input_ids, batch.document_ids, observer=record)
    return telemetry_values(model.config, record, batch.labels != IGNORE_INDEX, model.logits)
