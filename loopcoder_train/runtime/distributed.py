"""The process group of a run: gloo on the CPU, nccl on CUDA; one process needs no launcher."""

import os
from datetime import timedelta

import torch
import torch.distributed as dist

TIMEOUT_SECONDS = 600.0  # a collective that waits longer ends the process, where no watchdog comes first
_BACKENDS = {"cpu": "gloo", "cuda": "nccl"}


def is_launched() -> bool:
    """Whether torchrun, or something that sets the same variables, started this process."""
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))


def rank() -> int:
    """This process's number among all, 0 when alone; known before the process group is."""
    return int(os.environ["RANK"]) if is_launched() else 0


def world_size() -> int:
    """Number of processes, 1 when alone; known before the process group is."""
    return int(os.environ["WORLD_SIZE"]) if is_launched() else 1


def local_rank() -> int:
    """This process's number on its machine: which CUDA device it takes."""
    return int(os.environ.get("LOCAL_RANK", "0")) if is_launched() else 0


def local_world_size() -> int:
    """Number of processes on this machine: how its cores are shared."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if is_launched() else 1


def timeout_seconds(hang_timeout_seconds: float | None) -> float:
    """How long collectives may wait: longer than the watchdog, which knows more about what holds up a job."""
    return TIMEOUT_SECONDS if hang_timeout_seconds is None else 2 * hang_timeout_seconds + 60


def init_process_group(device: torch.device, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
    """Join the process group. `device`: this process's; its type chooses the backend."""
    timeout = timedelta(seconds=timeout_seconds)
    backend = _BACKENDS[device.type]
    # With a device NCCL makes one communicator per group, at once. Without, the interleaved schedule's single messages
    # would make one per pair of ranks at first use, in an order that can hang.
    device_id = device if device.type == "cuda" else None
    if is_launched():
        dist.init_process_group(backend, timeout=timeout, device_id=device_id)
    else:
        store = dist.HashStore()
        dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=timeout, device_id=device_id)


def destroy_process_group() -> None:
    """Leave the process group; nothing happens when there is none."""
    if dist.is_initialized():
        dist.destroy_process_group()


def reduced(
    tensor: torch.Tensor,
    device: torch.device,
    operation: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM,
    group: dist.ProcessGroup | None = None,
) -> torch.Tensor:
    """A tensor combined element-wise over the ranks of `group` (default: all), worked on `device`, back on its own."""
    combined = tensor.to(device, copy=True)
    dist.all_reduce(combined, op=operation, group=group)
    return combined.to(tensor.device)
