"""The plain-torch model on one process, behind the engine protocol: the yardstick for every other engine.

weights (fp32, or a bf16 copy of fp32 masters) -> forward, backward per micro-batch -> fp32 gradient sums
-> norm, which may be refused -> clip -> AdamW on the fp32 masters -> copy back
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from loopcoder_train.config import Precision, RunConfig
from loopcoder_train.engines.engine import Accept, MicroBatch, StepResult, accept_every_step, mean_loss
from loopcoder_train.engines.fingerprint import combined, fingerprint
from loopcoder_train.engines.stopwatch import Stopwatch
from loopcoder_train.engines.telemetry import LoopRecorder, telemetry_values
from loopcoder_train.model import IGNORE_INDEX, PLT, build_model
from loopcoder_train.model.loss import count_supervised, token_losses
from loopcoder_train.model.names import is_decayed
from loopcoder_train.model.state import (
    FIRST_MOMENT_PREFIX,
    MODEL_PREFIX,
    SECOND_MOMENT_PREFIX,
    TensorShard,
    whole,
)


class PlainEngine:
    """See :class:`~loopcoder_train.engines.engine.Engine`. One process, no parallelism."""

    data_parallel_rank = 0
    data_parallel_size = 1
    replica_id = 0

    def __init__(self, config: RunConfig, device: torch.device):
        self.config, self.device = config, device
        dtype = {Precision.fp32: torch.float32, Precision.bf16: torch.bfloat16}[config.training.precision]
        with device:
            masters = build_model(config.model, config.kernels, config.seed)
        self.master = {name: parameter.data for name, parameter in masters.named_parameters()}
        self.model: PLT = masters.to(dtype)  # in fp32 the same tensors: master and live weights are one
        for tensor in self.master.values():
            tensor.grad = torch.zeros_like(tensor)
        self.optimizer = self._build_optimizer()
        self._stopwatch = Stopwatch(device)

    @property
    def own_seconds(self) -> float:
        """Seconds of the last step's passes."""
        return self._stopwatch.seconds

    def _build_optimizer(self) -> torch.optim.AdamW:
        options = self.config.optimizer
        groups = [
            {
                "params": [tensor for name, tensor in self.master.items() if is_decayed(name) is decayed],
                "weight_decay": options.weight_decay if decayed else 0.0,
            }
            for decayed in (True, False)
        ]
        return torch.optim.AdamW(groups, lr=options.peak_lr, betas=(options.beta1, options.beta2), eps=options.eps)

    def train_step(
        self, micro_batches: Sequence[MicroBatch], learning_rate: float, accept: Accept = accept_every_step
    ) -> StepResult:
        """One AdamW step over `micro_batches`, if `accept` lets it be made."""
        self._stopwatch.start()
        loss, supervised = self._forward_backward(micro_batches)
        self._stopwatch.stop()
        masters = list(self.master.values())
        grad_norm = torch.nn.utils.get_total_norm([master.grad for master in masters])
        result = StepResult(loss=loss, supervised_tokens=supervised, grad_norm=float(grad_norm))
        result.updated = accept(result)
        if result.updated:
            clip = self.config.optimizer.clip_grad_norm or float("inf")
            torch.nn.utils.clip_grads_with_norm_(masters, clip, grad_norm)
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate
            self.optimizer.step()
            self._copy_back()
        return result

    def _forward_backward(self, micro_batches: Sequence[MicroBatch]) -> tuple[float, int]:
        """Loss in nats per supervised token, and their number; the gradients are in the masters' `grad`."""
        supervised = sum(int(count_supervised(batch.labels)) for batch in micro_batches)
        self.optimizer.zero_grad(set_to_none=False)
        loss_sum = 0.0
        for batch in micro_batches:
            batch = self._on_device(batch)
            losses = token_losses(self.model(batch.input_ids, batch.document_ids), batch.labels)
            (losses.sum() / max(supervised, 1)).backward()
            loss_sum += float(losses.detach().double().sum())
            self._collect_gradients()
        return mean_loss(loss_sum, supervised), supervised

    def _collect_gradients(self) -> None:
        """Add this micro-batch's gradients to the fp32 sums."""
        for name, parameter in self.model.named_parameters():
            self.master[name].grad += parameter.grad
            parameter.grad = None

    @torch.no_grad()
    def _copy_back(self) -> None:
        for name, parameter in self.model.named_parameters():
            if parameter.data_ptr() != self.master[name].data_ptr():
                parameter.copy_(self.master[name])

    @torch.no_grad()
    def token_losses(self, batch: MicroBatch) -> Tensor:
        """fp32 [R, B, S]: loss of every token read after every loop."""
        batch = self._on_device(batch)
        return torch.stack(
            [
                token_losses(self.model.logits(hidden), batch.labels)
                for hidden, _ in self.model.loops(batch.input_ids, batch.document_ids)
            ]
        )

    @torch.no_grad()
    def loop_telemetry(self, batch: MicroBatch) -> dict[str, float]:
        """See :func:`~loopcoder_train.engines.telemetry.telemetry_values`."""
        batch, record = self._on_device(batch), LoopRecorder()
        self.model(batch.input_ids, batch.document_ids, observer=record)
        return telemetry_values(self.config.model, record, batch.labels != IGNORE_INDEX, self.model.logits)

    def replicated_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Masters, moments and live weights, in case somebody compares this process with another."""
        return ((shard.name, shard.data) for shard in self.state_shards(loading=True))

    def own_gradient_fingerprint(self, micro_batches: Sequence[MicroBatch]) -> int:
        """See :mod:`~loopcoder_train.engines.fingerprint`."""
        self._forward_backward(micro_batches)
        return int(combined(fingerprint(master.grad) for master in self.master.values()))

    def sum_over_data_parallel(self, tensor: Tensor) -> Tensor:
        """The tensor itself: there is one rank."""
        return tensor

    def max_over_ranks(self, tensor: Tensor) -> Tensor:
        """The tensor itself: there is one rank."""
        return tensor

    def state_shards(self, *, loading: bool) -> list[TensorShard]:
        """Masters and Adam moments under their layout-free names; for loading also the bf16 copies."""
        shards = []
        for name, master in self.master.items():
            shards.append(whole(MODEL_PREFIX + name, master))
            state = self._adam_state(master)
            shards.append(whole(FIRST_MOMENT_PREFIX + name, state["exp_avg"]))
            shards.append(whole(SECOND_MOMENT_PREFIX + name, state["exp_avg_sq"]))
        if loading and self.config.training.precision is not Precision.fp32:
            shards += [whole(MODEL_PREFIX + n, p.data, owner=False) for n, p in self.model.named_parameters()]
        return shards

    def _adam_state(self, master: Tensor) -> dict[str, Tensor]:
        """This parameter's optimizer state, created as AdamW would at its first step."""
        state = self.optimizer.state[master]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"] = torch.zeros_like(master)
            state["exp_avg_sq"] = torch.zeros_like(master)
        return state

    def state_scalars(self) -> dict[str, int | float]:
        """`{"optimizer_step": n}`."""
        return {"optimizer_step": max(int(state["step"]) for state in self._states())}

    def load_state_scalars(self, scalars: dict[str, int | float]) -> None:
        """Restore the step that Adam's bias correction counts."""
        for state in self._states():
            state["step"] = torch.tensor(float(scalars["optimizer_step"]))

    def _states(self) -> Iterator[dict[str, Tensor]]:
        return (self._adam_state(master) for master in self.master.values())

    def _on_device(self, batch: MicroBatch) -> MicroBatch:
        names = ("input_ids", "labels", "document_ids", "source_ids")
        return MicroBatch(*(getattr(batch, name).to(self.device) for name in names))
