"""Fingerprints: equal for equal bits, different for anything else that a machine may do to them."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loopcoder_train.engines import fingerprint as module
from loopcoder_train.engines.fingerprint import combined, fingerprint

DTYPES = [torch.float32, torch.bfloat16, torch.int64, torch.uint8]
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def value(tensor) -> int:
    return int(fingerprint(tensor))


@given(st.sampled_from(DTYPES), st.integers(0, 10**6), st.data())
@settings(max_examples=200, deadline=None)
def test_one_flipped_bit_shows_wherever_it_is(dtype, seed, data):
    size = data.draw(st.integers(1, 300))
    generator = torch.Generator().manual_seed(seed)
    tensor = torch.randint(0, 100, (size,), generator=generator).to(dtype)
    flipped = tensor.clone()
    words = flipped.view(_BITS[tensor.element_size()])
    index, bit = data.draw(st.integers(0, size - 1)), data.draw(st.integers(0, 8 * tensor.element_size() - 1))
    mask = torch.tensor([1], dtype=torch.int64) << bit
    words[index] ^= mask.view(torch.uint8)[: tensor.element_size()].view(words.dtype)[0]
    assert value(flipped) != value(tensor)
    assert value(tensor.clone()) == value(tensor)


def test_values_that_trade_places_show():
    tensor = torch.arange(1000.0)
    for i, j in ((0, 1), (3, 700), (998, 999)):
        swapped = tensor.clone()
        swapped[[i, j]] = tensor[[j, i]]
        assert value(swapped) != value(tensor)


def test_chunks_have_their_places(monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", 8)
    tensor = torch.arange(40.0)
    swapped = torch.cat([tensor[8:16], tensor[:8], tensor[16:]])
    assert value(swapped) != value(tensor)
    flipped = tensor.clone()
    flipped[39] = -39.0
    assert value(flipped) != value(tensor)


def test_minus_zero_and_the_bits_of_nan_count():
    assert value(torch.tensor([0.0])) != value(torch.tensor([-0.0]))
    nan = torch.tensor([0x7FC00000, 0x7FC00001], dtype=torch.int32).view(torch.float32)
    assert value(nan[:1]) != value(nan[1:])


def test_views_and_shapes_do_not_matter_and_empty_tensors_are_fine():
    tensor = torch.arange(24.0).reshape(4, 6)
    assert value(tensor.t()) == value(tensor.t().contiguous()) != value(tensor)
    assert value(torch.empty(0)) == 0


def test_several_tensors_have_their_order():
    a, b = fingerprint(torch.ones(3)), fingerprint(torch.zeros(3) + 2)
    assert int(combined([a, b])) != int(combined([b, a]))
