"""The learning rate as a function of trained tokens: warm-up + cosine, or warm-up + stable + decay (WSD).

Tokens, not steps, so a changed batch size cannot bend the curve. A step uses the tokens trained at its END: the first
step already has a rate above zero and the last one has exactly the final rate.
"""

import math

from loopcoder_train.config import OptimizerConfig, ScheduleConfig, ScheduleKind


def learning_rate(tokens: int, *, total_tokens: int, optimizer: OptimizerConfig, schedule: ScheduleConfig) -> float:
    """Learning rate of the step that ends at `tokens` trained tokens of a run of `total_tokens`.

    Beyond `total_tokens` the final rate holds.
    """
    assert tokens >= 0 and total_tokens > 0, (tokens, total_tokens)
    fraction = shape(min(tokens / total_tokens, 1.0), schedule)
    return optimizer.peak_lr * fraction


def shape(done: float, schedule: ScheduleConfig) -> float:
    """Fraction of the peak rate when `done` (0..1) of the run's tokens are trained."""
    if done < schedule.warmup_fraction:
        return done / schedule.warmup_fraction
    if schedule.kind is ScheduleKind.cosine:
        return _cosine(done, schedule)
    return _stable_then_linear(done, schedule)


def _cosine(done: float, schedule: ScheduleConfig) -> float:
    rest = 1.0 - schedule.warmup_fraction
    progress = (done - schedule.warmup_fraction) / rest if rest > 0 else 0.0
    final = schedule.final_lr_fraction
    return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * progress))


def _stable_then_linear(done: float, schedule: ScheduleConfig) -> float:
    left = 1.0 - done
    if left >= schedule.decay_fraction:
        return 1.0
    return schedule.final_lr_fraction + (1.0 - schedule.final_lr_fraction) * left / schedule.decay_fraction
