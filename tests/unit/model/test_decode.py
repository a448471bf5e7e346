"""Token-by-token decoding equals the full forward pass, across windows shorter and longer than the text."""

import pytest
import torch

from loopcoder_train.config import GateInput, LoopKind
from loopcoder_train.model import build_model, kv_cache
from loopcoder_train.model.counts import kv_cache_bytes
from loopcoder_train.model.decode import Decoder
from loopcoder_train.model.kv_cache import GROWTH_POSITIONS
from tests.conftest import RELEASED_PRESET, randomize, small_model


@torch.no_grad()
@pytest.mark.parametrize("num_loops", [1, 2, 3, 4])
@pytest.mark.parametrize("window_left", [0, 5, 200])
@pytest.mark.parametrize("prompt_length", [1, 20])
def test_step_by_step_equals_the_full_forward_pass(num_loops, window_left, prompt_length):
    config = small_model(num_loops=num_loops, window_left=window_left, **RELEASED_PRESET)
    check(config, prompt_length)


@torch.no_grad()
@pytest.mark.parametrize(
    "changes",
    [
        {"num_loops": 2, "gate_input": GateInput.query},
        {"num_loops": 3},
        {"num_loops": 2, "tie_embeddings": True},
        {"num_loops": 2, "loop_kind": LoopKind.sequential},
    ],
)
def test_other_variants(changes):
    check(small_model(**changes), prompt_length=7)


def check(config, prompt_length):
    model = randomize(build_model(config), scale=0.15)
    tokens = torch.randint(0, config.vocab_size, (2, 40))
    expected = model(tokens)
    decoder = Decoder(model)
    logits = [decoder.prefill(tokens[:, :prompt_length])]
    logits += [decoder.step(tokens[:, position]) for position in range(prompt_length, 40)]
    torch.testing.assert_close(torch.stack(logits, dim=1), expected[:, prompt_length - 1 :], rtol=1e-4, atol=1e-4)
    assert decoder.cache_bytes() == 2 * kv_cache_bytes(config, 40, bytes_per_value=4)


@torch.no_grad()
@pytest.mark.parametrize("prompt_length", [1, 4, 6, 7, 30])
@pytest.mark.parametrize(
    ("num_loops", "kind"),
    [(1, LoopKind.parallel), (2, LoopKind.sequential)] + [(r, LoopKind.parallel) for r in (2, 3, 4)],
)
def test_bytes_of_the_cache_are_the_closed_form(num_loops, kind, prompt_length):
    """After a prompt no more memory is held than is used: a ring does not keep the whole prompt's tensor alive."""
    config = small_model(num_loops=num_loops, loop_kind=kind, window_left=5)
    decoder = Decoder(build_model(config))
    decoder.prefill(torch.zeros(3, prompt_length, dtype=torch.long))
    expected = 3 * kv_cache_bytes(config, prompt_length, bytes_per_value=4)
    assert (decoder.cache_bytes(), decoder.allocated_bytes()) == (expected, expected)
    for length in range(prompt_length + 1, prompt_length + 10):
        decoder.step(torch.zeros(3, dtype=torch.long))
        assert decoder.cache_bytes() == 3 * kv_cache_bytes(config, length, bytes_per_value=4)
    grown = kv_cache_bytes(config, prompt_length + GROWTH_POSITIONS, bytes_per_value=4)
    assert decoder.allocated_bytes() == 3 * grown


@torch.no_grad()
def test_a_buffer_grows_again_and_again(monkeypatch):
    """The text is much longer than what a full buffer grows by, for whole caches and for rings."""
    monkeypatch.setattr(kv_cache, "GROWTH_POSITIONS", 3)
    check(small_model(num_loops=3, window_left=10), prompt_length=2)


def test_an_empty_prompt_is_refused():
    with pytest.raises(ValueError, match="prompt length=0"):
        Decoder(build_model(small_model())).prefill(torch.zeros(1, 0, dtype=torch.long))


def test_a_step_needs_a_prompt_of_as_many_sequences():
    decoder = Decoder(build_model(small_model(num_loops=2)))
    with pytest.raises(ValueError, match="after a prompt of 0 sequences"):
        decoder.step(torch.tensor([1]))
    decoder.prefill(torch.tensor([[1, 2], [3, 4]]))
    with pytest.raises(ValueError, match="1 tokens after a prompt of 2 sequences"):
        decoder.step(torch.tensor([1]))
