"""Which attention kernel computes each branch (model/attention.py holds the table of what each can honour)."""

from dataclasses import dataclass
from enum import Enum


class GlobalKernel(Enum):
    """Causal attention inside documents (loop 1, and the global branch of later loops)."""

    auto = "auto"  # cuda: flash_attn when installed, else varlen; cpu: sdpa
    sdpa = "sdpa"
    flash_attn = "flash_attn"
    varlen = "varlen"


class LocalKernel(Enum):
    """Sliding-window attention inside documents (the local branch of loops >= 2)."""

    auto = "auto"  # cuda: flash_attn when installed, else varlen; cpu: block_window
    sdpa = "sdpa"
    block_window = "block_window"
    flash_attn = "flash_attn"
    varlen = "varlen"


@dataclass(kw_only=True, slots=True)
class KernelConfig:
    """Attention kernels. They change speed and rounding, never what is computed."""

    global_attention: GlobalKernel = GlobalKernel.auto
    local_attention: LocalKernel = LocalKernel.auto
