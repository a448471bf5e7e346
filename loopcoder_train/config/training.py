"""How long a run is, in which batches and in which precision."""

from dataclasses import dataclass
from enum import Enum

from loopcoder_train.config.errors import require, require_positive


class Precision(Enum):
    """Arithmetic of forward and backward. The optimizer works in fp32 either way.

    Gradients are summed over micro-batches and ranks in fp32; inside one backward pass the R visits of a weight add up
    in this precision.
    """

    fp32 = "fp32"
    bf16 = "bf16"  # bf16 weights and activations, fp32 master weights


class ActivationCheckpointing(Enum):
    """What is recomputed in the backward pass to save memory."""

    none = "none"
    layer = "layer"  # keep only each layer's input
    selective = "selective"  # recompute attention and the SwiGLU product, keep the matrix products


class Device(Enum):
    """Where a run computes; `auto` takes CUDA when this machine has it. Asking for a missing one is an error."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


@dataclass(kw_only=True, slots=True)
class TrainingConfig:
    """Length and batches. One step trains `global_batch_size * data.sequence_length` tokens."""

    num_steps: int
    global_batch_size: int  # sequences per optimizer step, over all processes
    micro_batch_size: int  # sequences per forward pass on one process
    precision: Precision = Precision.bf16
    activation_checkpointing: ActivationCheckpointing = ActivationCheckpointing.none
    stop_after_step: int | None = None  # save and stop here; the schedule still runs to num_steps
    time_limit_minutes: float | None = None  # save and stop before an attempt has run this long
    device: Device = Device.auto
    deterministic: bool = False  # CUDA: kernels that give the same bits twice, slower; the CPU's always do
    num_threads: int | None = None  # CPU threads per process; default: the machine's cores / processes on it

    def __post_init__(self) -> None:
        require_positive(
            training__num_steps=self.num_steps,
            training__global_batch_size=self.global_batch_size,
            training__micro_batch_size=self.micro_batch_size,
        )
        require(
            self.global_batch_size % self.micro_batch_size == 0,
            "training.global_batch_size",
            self.global_batch_size,
            f"must be a multiple of training.micro_batch_size={self.micro_batch_size}",
        )
        if self.stop_after_step is not None:
            require_positive(training__stop_after_step=self.stop_after_step)
        if self.time_limit_minutes is not None:
            require_positive(training__time_limit_minutes=self.time_limit_minutes)
        if self.num_threads is not None:
            require_positive(training__num_threads=self.num_threads)

    @property
    def last_step(self) -> int:
        """The step that an attempt ends with unless something stops it earlier."""
        return self.num_steps if self.stop_after_step is None else min(self.num_steps, self.stop_after_step)
