"""Initial values: a pure function of (seed, parameter name), so every layout and every R starts from the same model."""

import hashlib

import torch
from torch import Tensor

from loopcoder_train.config import ModelConfig
from loopcoder_train.model.names import is_gate


def initial_value(name: str, shape: tuple[int, ...], config: ModelConfig, seed: int) -> Tensor:
    """The whole tensor called `name` at step 0, fp32 on CPU.

    Norm weights are 1, gate weights and biases 0 (so g = 0.5), everything else is normal(0, init_std). A rank that owns
    a part of it makes the whole and cuts: the largest tensor of the 7B is 0.6 GB for a moment.
    """
    if name.endswith("norm.weight"):
        return torch.ones(shape)
    if is_gate(name):
        return torch.zeros(shape)
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.empty(shape).normal_(0.0, config.init_std, generator=generator)


@torch.no_grad()
def initialize(model: torch.nn.Module, config: ModelConfig, seed: int) -> None:
    """Fill every parameter of a plain model with its initial value."""
    for name, parameter in model.named_parameters():
        parameter.copy_(initial_value(name, tuple(parameter.shape), config, seed))
