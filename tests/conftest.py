"""Shared by all tests: one thread (two cores are shared with other processes) and small model configurations."""

import pytest
import torch

from loopcoder_train.config import ModelConfig

torch.set_num_threads(1)


def small_model(**changes) -> ModelConfig:
    """A PLT small enough for exhaustive comparison; sizes are mutually different so that a mixed-up dim shows."""
    sizes = {
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 10,
        "vocab_size": 61,
        "window_left": 5,
    }
    return ModelConfig(**(sizes | changes))


RELEASED_PRESET = {"embedding_scale": 0.707, "hidden_scale": 0.3, "normalize_between_loops": True}


@torch.no_grad()
def randomize(model: torch.nn.Module, seed: int = 0, scale: float = 0.3) -> torch.nn.Module:
    """Give every parameter a random value: zero gates would hide swapped directions, unit norms a missing weight."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        center = 1.0 if name.endswith("norm.weight") else 0.0
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.copy_(center + scale * noise)
    return model


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
