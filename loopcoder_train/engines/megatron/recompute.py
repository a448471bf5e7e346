"""Activation checkpointing: what is dropped after the forward pass and computed again in the backward pass.

    none       nothing
    layer      a layer keeps its input (and loop 1's keys and values, which later loops read); all else comes again
    selective  every matrix product and its input stay, but for one: attention's inner tensors, silu(gate) and the
               product silu(gate) * up, which down_proj needs for its weight gradient, come again

torch's non-reentrant checkpoint is used, not Megatron's: gradients then flow into K1 and V1 wherever they are used,
each parameter's gradient arrives once per backward pass whatever R is, and no random state is kept (the model draws no
random numbers). Collectives inside a recomputed layer run again, in the same order on every rank.
"""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

T = TypeVar("T")


def recomputed(function: Callable[..., T], *args: object) -> T:
    """`function(*args)`, keeping only its arguments for the backward pass."""
    return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False)


def swiglu_product(gate_up: Tensor) -> Tensor:
    """silu(gate) * up: [..., I] from the fused [..., 2 I]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def down_without_product(gate_up: Tensor, down: Callable[[Tensor], Tensor]) -> Tensor:
    """`down(swiglu_product(gate_up))`, keeping `gate_up` alone: 2 I numbers per token instead of 4 I."""
    product = recomputed(swiglu_product, gate_up)
    source, address, shape = gate_up.detach(), product.data_ptr(), product.shape

    def pack(saved: Tensor) -> Tensor | None:
        return None if saved.data_ptr() == address and saved.shape == shape else saved

    def unpack(packed: Tensor | None) -> Tensor:
        if packed is not None:
            return packed
        with torch.no_grad():
            return swiglu_product(source)

    with saved_tensors_hooks(pack, unpack):
        return down(product)
