"""Initial values depend on seed and name alone; flat ranges are cut into boxes exactly."""

from math import prod

import torch
from hypothesis import given
from hypothesis import strategies as st

from loopcoder_train.model import build_model
from loopcoder_train.model.init import initial_value
from loopcoder_train.model.state import flat_range_boxes
from tests.conftest import small_model


def test_every_r_starts_from_the_same_shared_values():
    one, three = (build_model(small_model(num_loops=r), seed=7).state_dict() for r in (1, 3))
    assert set(one) < set(three)
    assert all(torch.equal(value, three[name]) for name, value in one.items())


def test_values_differ_by_seed_and_by_name_and_have_the_configured_spread():
    config = small_model(init_std=0.02)
    value = initial_value("model.layers.0.mlp.up_proj.weight", (300, 300), config, 0)
    assert abs(float(value.std()) - 0.02) < 5e-4
    assert not torch.equal(value, initial_value("model.layers.1.mlp.up_proj.weight", (300, 300), config, 0))
    assert not torch.equal(value, initial_value("model.layers.0.mlp.up_proj.weight", (300, 300), config, 1))


def test_the_values_themselves_are_pinned():
    """A change of generator would silently give a resumed sweep other starting points."""
    value = initial_value("model.embed_tokens.weight", (2, 3), small_model(), 0)
    torch.testing.assert_close(value.flatten(), torch.tensor(PINNED), rtol=0, atol=1e-7)


PINNED = [-0.017396389, 0.00629694, -0.002836496, 0.009765397, -0.012286772, -0.00399894]


@given(st.lists(st.integers(1, 5), min_size=0, max_size=3), st.data())
def test_flat_ranges_become_boxes_exactly(shape, data):
    total = prod(shape)
    start = data.draw(st.integers(0, total))
    stop = data.draw(st.integers(start, total))
    values = torch.arange(total).reshape(shape)
    covered, boxes = [], list(flat_range_boxes(tuple(shape), start, stop))
    for offsets, lengths, low, high in boxes:
        box = values[tuple(slice(o, o + n) for o, n in zip(offsets, lengths, strict=True))]
        assert box.flatten().tolist() == list(range(low, high))
        covered += range(low, high)
    assert covered == list(range(start, stop))
    assert len(boxes) <= max(1, 2 * len(shape) - 1)
