"""Causality, packing and the window, as properties of the built model."""

import pytest
import torch

from loopcoder_train.config import GateInput, LoopKind
from loopcoder_train.model import build_model
from loopcoder_train.model.observer import Observer
from tests.conftest import RELEASED_PRESET, randomize, small_model

VARIANTS = {
    "r1": {"num_loops": 1},
    "r2": {"num_loops": 2, **RELEASED_PRESET},
    "r3": {"num_loops": 3, "gate_input": GateInput.query},
    "sequential": {"num_loops": 2, "loop_kind": LoopKind.sequential},
}


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS.keys())
def model(request):
    return randomize(build_model(small_model(**request.param)), scale=0.2)


@torch.no_grad()
def test_changing_a_token_changes_nothing_before_it(model):
    tokens = torch.randint(0, 61, (1, 90))  # long enough for the block path of the window
    before = model(tokens)
    for changed_at in (0, 1, 37, 89):
        changed = tokens.clone()
        changed[0, changed_at] = (changed[0, changed_at] + 1) % 61
        after = model(changed)
        assert torch.equal(before[:, :changed_at], after[:, :changed_at])
        assert not torch.equal(before[:, changed_at], after[:, changed_at])


@torch.no_grad()
def test_a_packed_document_gives_the_same_logits_as_alone(model):
    lengths = [33, 1, 50, 6]
    tokens = torch.randint(0, 61, (2, sum(lengths)))
    document_ids = torch.repeat_interleave(torch.arange(4), torch.tensor(lengths)).expand(2, -1)
    packed = model(tokens, document_ids)
    alone = torch.cat([model(part) for part in tokens.split(lengths, dim=1)], dim=1)
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("window_left", [0, 5, 20])
def test_the_window_shows_its_keys_to_the_left_and_self(window_left):
    """With the gate closed and one layer, h(2) at i depends on loop 2's inputs at i - window_left .. i only."""
    config = small_model(num_loops=2, window_left=window_left, num_layers=1)
    model = randomize(build_model(config), scale=0.2)
    model.model.layers[0].self_attn.plt_gate.weight.zero_()
    model.model.layers[0].self_attn.plt_gate.bias.fill_(-100.0)  # g = 0: local branch only
    embedding = torch.randn(1, 60, config.hidden_size)
    states = []
    for disturbed in (False, True):
        inputs = embedding.clone()
        if disturbed:
            inputs[0, 10] += 1.0
        states.append(_second_visit(model, inputs))
    changed = (states[0] != states[1]).any(dim=-1)[0].nonzero().flatten().tolist()
    assert changed == list(range(10, 10 + window_left + 1))


def _second_visit(model, loop_two_input):
    """h(2) when loop 2 reads `loop_two_input` and loop 1 read something fixed."""
    tokens = torch.zeros(1, loop_two_input.shape[1], dtype=torch.long)
    (_, shared), _ = model.loops(tokens)
    return model.visit_layers(loop_two_input, shared, model.rows(tokens).step(2, Observer()))[0]


def test_document_ids_of_another_shape_are_refused():
    model = build_model(small_model())
    with pytest.raises(ValueError, match="document_ids"):
        model(torch.zeros(2, 8, dtype=torch.long), torch.zeros(2, 7, dtype=torch.long))


@torch.no_grad()
def test_the_observer_sees_every_loop_and_the_gate_starts_at_one_half():
    seen = []

    class Recorder(Observer):
        def loop_input(self, loop_number, embedding, previous):
            seen.append(("input", loop_number, previous is None))

        def attention(self, loop_number, layer_index, tensors):
            seen.append(("attention", loop_number, layer_index, sorted(tensors)))

        def gate(self, loop_number, layer_index, gate):
            assert torch.equal(gate, torch.full_like(gate, 0.5)) and gate.shape == (1, 9, 6)

        def loop_output(self, loop_number, hidden):
            seen.append(("output", loop_number, tuple(hidden.shape)))

    build_model(small_model(num_loops=2, num_layers=1))(torch.zeros(1, 9, dtype=torch.long), observer=Recorder())
    later = ["global_output", "key", "local_output", "query", "shared_key", "shared_value", "value"]
    assert seen == [
        ("input", 1, True),
        ("attention", 1, 0, ["key", "query", "value"]),
        ("output", 1, (1, 9, 48)),
        ("input", 2, False),
        ("attention", 2, 0, later),
        ("output", 2, (1, 9, 48)),
    ]
