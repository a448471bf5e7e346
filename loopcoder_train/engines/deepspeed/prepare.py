"""Imports DeepSpeed so that it finds what this project decided, and leaves out what says nothing about a run.

- The device. DeepSpeed chooses one when it is imported, and warns where it finds none. The worker hides CUDA where
  training.device=cpu, so both choose alike (ZeroEngine checks).
- Compiled operations: none. It would look for compilers, and on CPUs build one for inference at the first start.
- One optimizer for stages 1 and 2. For bf16 with fp32 sums it would take another class in stage 1, with another layout
  and prints about memory at every start, though the usual one can do it (and does, under offload).
- Warnings about names of torch's collectives that DeepSpeed 0.19 calls. Every other warning passes.
"""

import os
import warnings

import torch


def prepare() -> None:
    """To be called before anything else of DeepSpeed is imported."""
    os.environ["DS_ACCELERATOR"] = "cuda" if torch.cuda.is_available() else "cpu"
    warnings.filterwarnings(
        "ignore",
        message=r"`torch\.distributed\.(all_gather_into_tensor|reduce_scatter_tensor)` is deprecated",
        category=FutureWarning,
    )
    import deepspeed
    from deepspeed.runtime.zero.config import ZERO_OPTIMIZATION

    deepspeed.ops.__compatible_ops__ = {}
    deepspeed.DeepSpeedEngine._do_optimizer_sanity_check = lambda engine, optimizer: ZERO_OPTIMIZATION
