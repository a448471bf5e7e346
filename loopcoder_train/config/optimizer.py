"""AdamW and its learning-rate schedule (plt.md section 3: Adam(0.9, 0.95, eps 1e-15), decay 0.1, clip 1.0)."""

from dataclasses import dataclass
from enum import Enum

from loopcoder_train.config.errors import require, require_positive


class ScheduleKind(Enum):
    """Shape of the learning rate over tokens."""

    cosine = "cosine"  # linear warm-up, then cosine to the end
    wsd = "wsd"  # linear warm-up, constant, linear decay at the end


@dataclass(kw_only=True, slots=True)
class OptimizerConfig:
    """Decoupled AdamW; biases and norm weights are not decayed. The same in every engine."""

    peak_lr: float = 4e-4
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-15
    weight_decay: float = 0.1
    clip_grad_norm: float = 1.0  # global L2 norm; 0 turns clipping off

    def __post_init__(self) -> None:
        require_positive(optimizer__peak_lr=self.peak_lr, optimizer__eps=self.eps)
        for name, beta in (("beta1", self.beta1), ("beta2", self.beta2)):
            require(0 <= beta < 1, f"optimizer.{name}", beta, "must lie in [0, 1)")
        require(self.weight_decay >= 0, "optimizer.weight_decay", self.weight_decay, "must be 0 or more")
        require(
            self.clip_grad_norm >= 0,
            "optimizer.clip_grad_norm",
            self.clip_grad_norm,
            "must be 0 (off) or more",
        )


@dataclass(kw_only=True, slots=True)
class ScheduleConfig:
    """Learning rate as a function of trained tokens, so a changed batch size cannot bend it."""

    kind: ScheduleKind = ScheduleKind.cosine
    warmup_fraction: float = 0.05  # of the run's tokens (the paper: the first 5% of steps)
    decay_fraction: float = 0.2  # of the run's tokens; wsd only
    final_lr_fraction: float = 0.1  # of peak_lr at the end (not published; 0.1 is this project's choice)

    def __post_init__(self) -> None:
        for name in ("warmup_fraction", "decay_fraction", "final_lr_fraction"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"schedule.{name}", value, "must lie between 0 and 1")
        require(
            self.kind is ScheduleKind.cosine or self.warmup_fraction + self.decay_fraction <= 1,
            "schedule.decay_fraction",
            self.decay_fraction,
            f"warm-up ({self.warmup_fraction}) and decay together must not exceed 1",
        )
