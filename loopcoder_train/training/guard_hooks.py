"""The guards that a configuration asks for, as hooks."""

import torch

from loopcoder_train.config import RunConfig
from loopcoder_train.config.errors import require
from loopcoder_train.training.loop import Hook
from loopcoder_train.training.replicas import RecomputeHook, ReplicaHook
from loopcoder_train.training.slow_ranks import SlowRankHook


def slow_rank_hooks(config: RunConfig, world_size: int) -> list[Hook]:
    """The report about slow ranks, where there are several and it is asked for."""
    every_steps = config.guards.slow_rank_every_steps
    if every_steps is None or world_size == 1:
        return []
    return [SlowRankHook(every_steps, config.guards.slow_rank_factor)]


def corruption_hooks(config: RunConfig, device: torch.device) -> list[Hook]:
    """Comparisons of what must be equal, where they are asked for."""
    guards, hooks = config.guards, []
    if guards.compare_replicas_every_steps is not None:
        hooks.append(ReplicaHook(guards.compare_replicas_every_steps, save_every_steps=config.checkpoint.every_steps))
    if guards.recompute_every_steps is not None:
        require(
            device.type == "cpu" or config.training.deterministic,
            "guards.recompute_every_steps",
            guards.recompute_every_steps,
            "compares bits, and without training.deterministic=true CUDA gives other ones each time",
            "set both, or neither",
        )
        hooks.append(RecomputeHook(guards.recompute_every_steps))
    return hooks
