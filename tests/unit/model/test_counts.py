"""Closed forms against what torch counts, and the released model's published size."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from loopcoder_train.config import GateInput, LoopKind, ModelConfig
from loopcoder_train.config.io import from_dict
from loopcoder_train.model import build_model
from loopcoder_train.model.counts import (
    AttentionPairs,
    attention_pairs,
    count_parameters,
    forward_flops,
    kv_cache_bytes,
    pairs_of_lengths,
    training_flops,
)
from loopcoder_train.model.documents import Documents
from loopcoder_train.model.names import is_decayed, parameter_shapes
from tests.conftest import small_model

PLT_7B = ModelConfig(
    hidden_size=5120,
    intermediate_size=27648,
    num_layers=14,
    num_attention_heads=40,
    num_key_value_heads=8,
    head_dim=128,
    vocab_size=76800,
)


def from_file(name):
    """The model of configs/model/NAME.yaml."""
    values = yaml.safe_load((Path(__file__).parents[3] / "configs" / "model" / f"{name}.yaml").read_text())
    return from_dict(ModelConfig, values)


@pytest.mark.parametrize(
    ("name", "millions"), [("tiny", 1.84), ("plt_300m", 322), ("plt_1b", 1070), ("plt_7b", 7612.810 + 2.939)]
)
def test_configured_sizes_are_what_their_files_say(name, millions):
    assert count_parameters(from_file(name)).total / 1e6 == pytest.approx(millions, rel=5e-3)


def test_the_configured_7b_is_the_released_shape():
    configured = from_file("plt_7b")
    assert parameter_shapes(configured) == parameter_shapes(PLT_7B)
    assert (configured.window_left, configured.rope_theta, configured.rms_norm_eps) == (64, 5e5, 1e-5)


def test_the_released_shape_on_meta():
    with torch.device("meta"):
        model = build_model(PLT_7B)
    counts = count_parameters(PLT_7B)
    assert sum(p.numel() for p in model.parameters()) == counts.total
    assert counts.gates == 2_939_440
    assert counts.total - counts.gates == 7_612_810_240


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_loops": 1},
        {"tie_embeddings": True},
        {"gate_input": GateInput.query},
        {"loop_kind": LoopKind.sequential},
    ],
)
def test_parameter_shapes_are_the_built_models(changes):
    config = small_model(**changes)
    model = build_model(config)
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == parameter_shapes(config)
    assert count_parameters(config).total == sum(p.numel() for p in model.parameters())


def test_only_biases_and_norms_are_not_decayed():
    names = [name.removeprefix("model.layers.0.") for name in parameter_shapes(small_model(num_layers=1))]
    assert [name for name in names if not is_decayed(name)] == [
        "input_layernorm.weight",
        "post_attention_layernorm.weight",
        "self_attn.plt_gate.bias",
        "self_attn.plt_gate.gate_norm.weight",
        "model.norm.weight",
    ]


@pytest.mark.parametrize("num_loops", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", LoopKind)
def test_flops_equal_torchs_counter_when_no_pair_is_masked_out(num_loops, kind):
    """torch's counter counts every pair of a masked attention; given those, the closed form must agree exactly."""
    config = small_model(num_loops=num_loops, loop_kind=kind)
    model, tokens = build_model(config), torch.zeros(2, 10, dtype=torch.long)
    every_pair = AttentionPairs(causal=2 * 10 * 10, window=2 * 10 * 10)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # the fused kernel is not counted
        logits = model(tokens)
        assert counter.get_total_flops() == forward_flops(config, 20, every_pair)
        logits.sum().backward()
    assert counter.get_total_flops() == training_flops(config, 20, every_pair)


@pytest.mark.parametrize("window_left", [0, 3, 100])
def test_pairs_equal_the_masks(window_left):
    ids = torch.tensor([[0] * 7 + [1] * 2 + [2] * 11, [0] * 20])
    documents = Documents.of(ids, ids)
    pairs = attention_pairs(ids.numpy(), window_left)
    assert pairs.causal == int(documents.visible(None).sum())
    assert pairs.window == int(documents.visible(window_left).sum())


@pytest.mark.parametrize(("num_loops", "gflop"), [(1, 46.8), (2, 91.4), (3, 135.9), (4, 180.5)])
def test_cost_per_token_of_the_7b(num_loops, gflop):
    config = ModelConfig(**{field: getattr(PLT_7B, field) for field in PLT_7B.__slots__} | {"num_loops": num_loops})
    per_token = training_flops(config, 8192, pairs_of_lengths(np.array([8192]), 64)) / 8192
    assert per_token / 1e9 == pytest.approx(gflop, abs=0.06)


def test_kv_bytes_grow_by_a_ring_per_loop():
    config = small_model(num_loops=3, window_left=5)
    one_position = 2 * 2 * 2 * 10 * 2
    assert kv_cache_bytes(config, 100) == one_position * (100 + 2 * 6)
    assert kv_cache_bytes(small_model(num_loops=3, loop_kind=LoopKind.sequential), 100) == one_position * 300
