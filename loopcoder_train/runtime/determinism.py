"""Seeds, and the algorithms that give the same bits twice.

A resumed run must equal the uninterrupted one bit for bit on the same layout. On the CPU that holds by itself, with a
fixed number of threads. On CUDA some kernels add in the order in which blocks happen to finish; asking for
deterministic ones costs speed, so it is the caller's choice. Initial weights and the order of data do not come from
these generators: they are pure functions of the seed.
"""

import os
import random

import numpy as np
import torch

_CUBLAS_WORKSPACE = ":4096:8"  # cuBLAS needs a fixed workspace to be deterministic


def seed_everything(seed: int, rank: int = 0) -> None:
    """Seed Python, numpy and torch. `rank`: processes that must draw different numbers give their own."""
    random.seed(seed + rank)
    np.random.seed((seed + rank) % 2**32)
    torch.manual_seed(seed + rank)  # every device


def use_deterministic_algorithms(enabled: bool, device_type: str) -> None:
    """Choose deterministic kernels, or an error from one that has none. Call it before the first CUDA operation.

    On the CPU nothing needs to be chosen.
    """
    if device_type != "cuda":
        return
    if enabled:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", _CUBLAS_WORKSPACE)
    torch.use_deterministic_algorithms(enabled)
    torch.backends.cudnn.deterministic = enabled
    torch.backends.cudnn.benchmark = not enabled
