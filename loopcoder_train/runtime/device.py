"""The one place that chooses a device. A request that cannot be met is an error, never a silent fallback."""

import os

import torch

from loopcoder_train.config import Device, UserError


def choose_device(requested: Device, local_rank: int = 0) -> torch.device:
    """This process's device: CUDA device `local_rank`, or the CPU.

    Raises:
        UserError: CUDA was asked for and is missing, or has fewer devices than processes on this machine.
    """
    available = torch.cuda.is_available()
    if requested is Device.cuda and not available:
        raise UserError("training.device=cuda: this machine has no CUDA device; use training.device=cpu")
    if requested is Device.cpu or not available:
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise UserError(
            f"parallel.world_size: local rank {local_rank} has no CUDA device of its own, this machine has "
            f"{torch.cuda.device_count()}; start fewer processes here"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def set_threads(num_threads: int | None, local_world_size: int) -> int:
    """Set the CPU threads of this process: `num_threads`, or the cores that it may use shared by its processes.

    Not the machine's: a SLURM job may have been given some of them only.
    """
    threads = num_threads or max(1, len(os.sched_getaffinity(0)) // local_world_size)
    torch.set_num_threads(threads)
    return threads
