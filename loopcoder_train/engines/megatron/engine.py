"""The PLT on Megatron-core behind the engine protocol.

micro-batches -> Megatron's schedule (forward, backward; loss SUMS) -> finalize (sum over ranks, divide by the global
batch's supervised tokens) -> norm, which may be refused -> clip -> AdamW on fp32 main tensors -> live weights
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial

import torch
from megatron.core.distributed import DistributedDataParallel, finalize_model_grads
from megatron.core.transformer.module import MegatronModule
from torch import Tensor, distributed

from loopcoder_train.config import RunConfig
from loopcoder_train.engines.engine import Accept, MicroBatch, StepResult, accept_every_step, mean_loss
from loopcoder_train.engines.fingerprint import combined, fingerprint
from loopcoder_train.engines.megatron import measure, setup
from loopcoder_train.engines.megatron.loops import Loops, SingleStage
from loopcoder_train.engines.megatron.mesh import Mesh
from loopcoder_train.engines.megatron.optimizer import OptimizerState, build_optimizer, gradient_norm, update
from loopcoder_train.engines.megatron.parameters import stage_layout
from loopcoder_train.engines.megatron.pipeline import LoopPipeline
from loopcoder_train.engines.megatron.stage import Stage
from loopcoder_train.engines.stopwatch import Stopwatch
from loopcoder_train.model.init import initial_value
from loopcoder_train.model.loss import count_supervised
from loopcoder_train.model.state import MODEL_PREFIX, TensorShard, fill
from loopcoder_train.runtime.distributed import reduced


class MegatronEngine:
    """See :class:`~loopcoder_train.engines.engine.Engine`.

    The caller has initialised torch.distributed (gloo or NCCL) with `config.parallel.world_size` processes and chosen
    `device`. One engine at a time lives in a process; :meth:`close` ends it, and an exception inside a step makes it
    useless. Written for CUDA as well as for the CPU, run on CPUs only so far.
    """

    def __init__(self, config: RunConfig, device: torch.device):
        self.config, self.device = config, device
        # Megatron allocates on CUDA wherever it finds a device: a CPU run must not see one (worker.py hides it).
        assert device.type == "cuda" or not torch.cuda.is_available(), "device=cpu needs CUDA_VISIBLE_DEVICES=''"
        setup.initialize_process_groups(config.parallel, config.guards.hang_timeout_seconds)
        self.mesh = Mesh.current(config.parallel.sequence_parallel)
        self.data_parallel_rank, self.data_parallel_size = self.mesh.data.rank(), self.mesh.data.size()
        self.replica_id = self.mesh.pipeline.rank() * self.mesh.tensor.size() + self.mesh.tensor.rank()
        self._megatron_config = setup.transformer_config(config)
        self.stage = Stage(config, self._megatron_config, self.mesh, device)
        self._layout = stage_layout(self.stage, config.model, self.mesh.tensor.rank(), self.mesh.tensor.size())
        self._ddp = DistributedDataParallel(self._megatron_config, setup.ddp_config(config.parallel), self.stage)
        self._optimizer = build_optimizer(config, self._ddp, self._layout)
        self._state = OptimizerState(self._optimizer, self._layout, self.mesh)
        self._loops: Loops = SingleStage(self.stage) if self.mesh.num_stages == 1 else LoopPipeline(self.stage)
        fill(self._state.weight_shards(loading=True), self._initial_value)
        self._own_work = Stopwatch(device)

    @property
    def own_seconds(self) -> float:
        """Seconds of the last step until gradients are summed over replicas; waits for partners of one copy count."""
        return self._own_work.seconds

    def train_step(
        self, micro_batches: Sequence[MicroBatch], learning_rate: float, accept: Accept = accept_every_step
    ) -> StepResult:
        """One AdamW step over this rank's `micro_batches` and those of the other ranks, if `accept` lets it be made."""
        self._own_work.start()
        loss, supervised = self.forward_backward(micro_batches)
        grad_norm = gradient_norm(self._optimizer)
        result = StepResult(loss=loss, supervised_tokens=supervised, grad_norm=grad_norm)
        result.updated = accept(result)
        if result.updated:
            update(self._optimizer, grad_norm, learning_rate)
        return result

    def forward_backward(self, micro_batches: Sequence[MicroBatch]) -> tuple[float, int]:
        """Loss (nats per supervised token of the global batch) and that number of tokens; gradients stay in place."""
        reports = self._run_loops(micro_batches)
        # The last stage has seen the losses of its rows: sum over everybody who has seen some, tell the rest.
        total = torch.stack(reports).sum(dim=0) if reports else torch.zeros(2, dtype=torch.float64, device=self.device)
        for group in (self.mesh.replicas, self.mesh.pipeline):
            distributed.all_reduce(total, group=group)
        loss_sum, tokens = total.tolist()
        return mean_loss(loss_sum, int(tokens)), int(tokens)

    def _run_loops(self, micro_batches: Sequence[MicroBatch], *, reduce: bool = True) -> list[Tensor]:
        """Forward and backward over this rank's micro-batches; the reports of :meth:`_loss` where there are any.

        Without `reduce` the gradients stay this rank's own sums, neither added up nor divided by tokens.
        """
        self._ddp.zero_grad_buffer()
        self._optimizer.zero_grad()
        # Overlapped reduction with loops as chunks: DDP counts, in the first step, how often each gradient arrives in
        # the chunks' last backward passes, and later reduces a bucket when all have arrived as often: in loop 1's.
        # Megatron's schedule leaves `no_sync` for the last micro-batch; what is not reduced never leaves it.
        config = self._megatron_config
        config.no_sync_func = self._ddp.no_sync if reduce else nullcontext
        config.finalize_model_grads_func = self._finalize_gradients if reduce else None
        with nullcontext() if reduce else self._ddp.no_sync():
            return self._loops.run([self._on_device(batch) for batch in micro_batches], self._forward_step)

    def _forward_step(self, batches: Iterator[tuple[int, MicroBatch]], model: MegatronModule) -> tuple[Tensor, partial]:
        """Megatron's forward step: the model's output, and the function that turns it into a loss."""
        number, batch = next(batches)
        return model(number, batch), partial(self._loss, batch.labels)

    def _loss(self, labels: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of this rank's rows: loss sum to differentiate, supervised tokens, and both as a report (fp64 [2])."""
        labels = self.stage.zigzag.cut(labels)
        losses = self.stage.token_losses(hidden, labels)
        tokens = count_supervised(labels)
        report = torch.stack([losses.detach().double().sum(), tokens.double()])
        return losses.sum(), tokens.int(), report

    def _finalize_gradients(self, _model: object, num_tokens: Tensor | None = None, **options: object) -> None:
        """Sum gradients over ranks, then divide by the global batch's tokens.

        DDP is given once however many chunks the schedule has: per chunk, the distributed optimizer's buffers would be
        reduced again.
        """
        self._own_work.stop()
        finalize_model_grads([self._ddp], num_tokens, **options)

    def token_losses(self, batch: MicroBatch) -> Tensor:
        """fp32 [R, B, S]: loss of every token read after every loop, on every rank."""
        return measure.token_losses(self._loops, self._on_device(batch))

    def loop_telemetry(self, batch: MicroBatch) -> dict[str, float]:
        """See :func:`~loopcoder_train.engines.telemetry.telemetry_values`; the mean over data-parallel ranks."""
        values = measure.loop_telemetry(self._loops, self._on_device(batch), self.config.model)
        total = self.sum_over_data_parallel(torch.tensor(list(values.values()), dtype=torch.float64))
        return dict(zip(values, (total / self.data_parallel_size).tolist(), strict=True))

    def replicated_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Live weights; masters and moments too, unless the distributed optimizer spreads them over the replicas."""
        if self._ddp.ddp_config.overlap_param_gather:
            self._ddp.start_param_sync(force_sync=True)  # the last step's weights may still be underway
        return self._state.replicated_tensors()

    def own_gradient_fingerprint(self, micro_batches: Sequence[MicroBatch]) -> int:
        """See :mod:`~loopcoder_train.engines.fingerprint`. Ranks of one model copy work on it together."""
        self._run_loops(micro_batches, reduce=False)
        return int(combined(fingerprint(parameter.main_grad) for parameter in self._layout))

    def sum_over_data_parallel(self, tensor: Tensor) -> Tensor:
        """Sum over the data-parallel ranks; back on the caller's device."""
        return tensor if self.data_parallel_size == 1 else reduced(tensor, self.device, group=self.mesh.data)

    def max_over_ranks(self, tensor: Tensor) -> Tensor:
        """Element-wise maximum over all ranks; back on the caller's device."""
        return reduced(tensor, self.device, distributed.ReduceOp.MAX)

    def state_shards(self, *, loading: bool) -> list[TensorShard]:
        """Weights and Adam moments under layout-free names; loading needs no communication afterwards."""
        return [*self._state.weight_shards(loading=loading), *self._state.moment_shards()]

    def gradient_shards(self) -> list[TensorShard]:
        """Gradients of the last :meth:`forward_backward` under their parameters' names, as this rank holds them."""
        return list(self._state.gradient_shards())

    def state_scalars(self) -> dict[str, int | float]:
        """`{"optimizer_step": n}`, the same on every rank."""
        return {"optimizer_step": int(self.max_over_ranks(torch.tensor(self._state.step)))}

    def load_state_scalars(self, scalars: dict[str, int | float]) -> None:
        """Restore the step that Adam's bias correction counts."""
        self._state.step = int(scalars["optimizer_step"])

    def close(self) -> None:
        """Forget Megatron's process groups; torch.distributed stays the caller's."""
        setup.leave_process_groups()

    def _initial_value(self, name: str, shape: tuple[int, ...]) -> Tensor:
        return initial_value(name.removeprefix(MODEL_PREFIX), shape, self.config.model, self.config.seed)

    def _on_device(self, batch: MicroBatch) -> MicroBatch:
        return MicroBatch(*(getattr(batch, name).to(self.device, non_blocking=True) for name in MicroBatch.__slots__))
