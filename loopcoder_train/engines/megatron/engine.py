"""The PLT on Megatron-core behind the engine protocol.

micro-batches -> Megatron's schedule (forward, backward; loss SUMS) -> finalize (sum over ranks, divide by the global
batch's supervised tokens) -> clip -> AdamW on fp32 main tensors -> live weights
"""

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, finalize_model_grads
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.tensor_parallel import scatter_to_sequence_parallel_region
from torch import Tensor, distributed
from torch.nn import functional as F

from loopcoder_train.config import RunConfig
from loopcoder_train.engines.engine import MicroBatch, StepResult
from loopcoder_train.engines.megatron import setup
from loopcoder_train.engines.megatron.loops import AllLoops, loop_outputs
from loopcoder_train.engines.megatron.optimizer import OptimizerState, build_optimizer
from loopcoder_train.engines.megatron.parameters import fill, stage_layout
from loopcoder_train.engines.megatron.recorder import GatheringRecorder
from loopcoder_train.engines.megatron.stage import Stage
from loopcoder_train.engines.telemetry import telemetry_values
from loopcoder_train.model import IGNORE_INDEX
from loopcoder_train.model.init import initial_value
from loopcoder_train.model.loss import count_supervised
from loopcoder_train.model.state import MODEL_PREFIX, TensorShard


class MegatronEngine:
    """See :class:`~loopcoder_train.engines.engine.Engine`.

    The caller has initialised torch.distributed (gloo or NCCL) with `config.parallel.world_size` processes and chosen
    `device`. One engine at a time lives in a process; :meth:`close` ends it. Written for CUDA as well as for the CPU,
    run on CPUs only so far.
    """

    def __init__(self, config: RunConfig, device: torch.device):
        self.config, self.device = config, device
        # Megatron allocates on CUDA wherever it finds a device: a CPU run must not see one (worker.py hides it).
        assert device.type == "cuda" or not torch.cuda.is_available(), "device=cpu needs CUDA_VISIBLE_DEVICES=''"
        setup.initialize_process_groups(config.parallel)
        self._tensor_group = parallel_state.get_tensor_model_parallel_group()
        self._data_group = parallel_state.get_data_parallel_group()
        self.data_parallel_rank, self.data_parallel_size = self._data_group.rank(), self._data_group.size()
        megatron_config = setup.transformer_config(config)
        self.stage = Stage(config, megatron_config, self._tensor_group, device)
        self._layout = stage_layout(self.stage, config.model, self._tensor_group.rank(), self._tensor_group.size())
        self._ddp = DistributedDataParallel(megatron_config, setup.ddp_config(config.parallel), self.stage)
        self._optimizer = build_optimizer(config, self._ddp, self._layout)
        self._state = OptimizerState(self._optimizer, self._layout, self.data_parallel_rank, self._tensor_group.rank())
        self._model = AllLoops(self.stage)
        megatron_config.no_sync_func = self._ddp.no_sync
        megatron_config.finalize_model_grads_func = self._finalize_gradients
        fill(self._state.weight_shards(loading=True), self._initial_value)

    def train_step(self, micro_batches: Sequence[MicroBatch], learning_rate: float) -> StepResult:
        """One AdamW step over this rank's `micro_batches` and those of the other data-parallel ranks."""
        loss, supervised = self.forward_backward(micro_batches)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        _, grad_norm, _ = self._optimizer.step()
        return StepResult(loss=loss, supervised_tokens=supervised, grad_norm=grad_norm)

    def forward_backward(self, micro_batches: Sequence[MicroBatch]) -> tuple[float, int]:
        """Loss (nats per supervised token of the global batch) and that number of tokens; gradients stay in place."""
        self._ddp.zero_grad_buffer()
        self._optimizer.zero_grad()
        reports = get_forward_backward_func()(
            forward_step_func=self._forward_step,
            data_iterator=iter(micro_batches),
            model=self._model,
            num_microbatches=len(micro_batches),
            seq_length=micro_batches[0].input_ids.shape[1],
            micro_batch_size=micro_batches[0].input_ids.shape[0],
            forward_only=False,
        )
        loss_sum, tokens = self.sum_over_data_parallel(torch.stack(reports).sum(dim=0)).tolist()
        return loss_sum / max(tokens, 1), int(tokens)

    def _forward_step(self, batches: Iterator[MicroBatch], model: AllLoops) -> tuple[Tensor, partial]:
        """Megatron's forward step: the model's output, and the function that turns it into a loss."""
        input_ids, labels, document_ids = self._on_device(next(batches))
        return model(input_ids, document_ids), partial(self._loss, labels)

    def _loss(self, labels: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Loss sum to differentiate, supervised tokens, and both as a report (fp64 [2])."""
        losses = self.stage.token_losses(hidden, labels)
        tokens = count_supervised(labels)
        report = torch.stack([losses.detach().double().sum(), tokens.double()])
        return losses.sum(), tokens.int(), report

    def _finalize_gradients(self, _model: object, num_tokens: Tensor | None = None, **options: object) -> None:
        """Sum gradients over ranks, then divide by the global batch's tokens.

        DDP is given once however many chunks the schedule has: per chunk, the distributed optimizer's buffers would be
        reduced again.
        """
        finalize_model_grads([self._ddp], num_tokens, **options)

    @torch.no_grad()
    def token_losses(self, batch: MicroBatch) -> Tensor:
        """fp32 [R, B, S]: loss of every token read after every loop, on every tensor rank."""
        length = batch.input_ids.shape[1]
        input_ids, labels, document_ids = self._padded(*self._on_device(batch))
        losses = [
            self.stage.token_losses(hidden, labels).transpose(0, 1)
            for hidden in loop_outputs(self.stage, input_ids, document_ids)
        ]
        return torch.stack(losses)[:, :, :length]

    @torch.no_grad()
    def loop_telemetry(self, batch: MicroBatch) -> dict[str, float]:
        """See :func:`~loopcoder_train.engines.telemetry.telemetry_values`; the mean over data-parallel ranks."""
        input_ids, labels, document_ids = self._padded(*self._on_device(batch))
        record = GatheringRecorder(self.stage)
        for _ in loop_outputs(self.stage, input_ids, document_ids, record):
            pass
        values = telemetry_values(self.config.model, record, labels != IGNORE_INDEX, self._logits_of_whole_states)
        total = self.sum_over_data_parallel(torch.tensor(list(values.values()), dtype=torch.float64))
        return dict(zip(values, (total / self.data_parallel_size).tolist(), strict=True))

    def _logits_of_whole_states(self, states: Tensor) -> Tensor:
        """[B, S, V] from gathered states [B, S, d]."""
        rows = states.transpose(0, 1)
        if self.stage.sequence_group is not None:
            rows = scatter_to_sequence_parallel_region(rows, group=self.stage.sequence_group)
        return self.stage.logits(rows)

    def sum_over_data_parallel(self, tensor: Tensor) -> Tensor:
        """Sum over the data-parallel ranks; back on the caller's device."""
        if self.data_parallel_size == 1:
            return tensor
        total = tensor.to(self.device, copy=True)
        distributed.all_reduce(total, group=self._data_group)
        return total.to(tensor.device)

    def state_shards(self, *, loading: bool) -> list[TensorShard]:
        """Weights and Adam moments under layout-free names; loading needs no communication afterwards."""
        return [*self._state.weight_shards(loading=loading), *self._state.moment_shards()]

    def gradient_shards(self) -> list[TensorShard]:
        """Gradients of the last :meth:`forward_backward` under their parameters' names, as this rank holds them."""
        return list(self._state.gradient_shards())

    def state_scalars(self) -> dict[str, int | float]:
        """`{"optimizer_step": n}`, the same on every rank."""
        steps = torch.tensor(self._state.step, device=self.device)
        distributed.all_reduce(steps, op=distributed.ReduceOp.MAX)
        return {"optimizer_step": int(steps)}

    def load_state_scalars(self, scalars: dict[str, int | float]) -> None:
        """Restore the step that Adam's bias correction counts."""
        self._state.step = int(scalars["optimizer_step"])

    def close(self) -> None:
        """Forget Megatron's process groups; torch.distributed stays the caller's."""
        parallel_state.destroy_model_parallel()

    def _initial_value(self, name: str, shape: tuple[int, ...]) -> Tensor:
        return initial_value(name.removeprefix(MODEL_PREFIX), shape, self.config.model, self.config.seed)

    def _on_device(self, batch: MicroBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Input ids, labels and document ids [B, S]."""
        return tuple(x.to(self.device, non_blocking=True) for x in (batch.input_ids, batch.labels, batch.document_ids))

    def _padded(self, input_ids: Tensor, labels: Tensor, document_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows made a multiple of the sequence parts, by tokens at the end that nothing reads."""
        group = self.stage.sequence_group
        missing = -input_ids.shape[1] % (1 if group is None else group.size())
        if missing == 0:
            return input_ids, labels, document_ids
        document_ids = torch.cat([document_ids, document_ids[:, -1:].expand(-1, missing)], dim=1)
        return F.pad(input_ids, (0, missing)), F.pad(labels, (0, missing), value=IGNORE_INDEX), document_ids
