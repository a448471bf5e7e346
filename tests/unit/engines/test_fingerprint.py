"""Fingerprints: equal for equal bits, different for anything else that a machine may do to them."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loopcoder_train.engines import fingerprint as module
from loopcoder_train.engines.fingerprint import box_fingerprint, combined, fingerprint
from loopcoder_train.model.state import TensorShard, flat_range_boxes, whole

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


def in_boxes(tensor: torch.Tensor, cuts: list[int]) -> int:
    """The sum over the boxes of a tensor that is cut at these flat positions."""
    total = torch.zeros((), dtype=torch.int64)
    for start, stop in zip([0, *cuts], [*cuts, tensor.numel()], strict=True):
        for offsets, lengths, _, _ in flat_range_boxes(tuple(tensor.shape), start, stop):
            index = tuple(slice(o, o + n) for o, n in zip(offsets, lengths, strict=True))
            total += box_fingerprint(TensorShard("t", tuple(tensor.shape), offsets, tensor[index]))
    return int(total)


@given(st.lists(st.integers(0, 5 * 7 * 3), max_size=6).map(sorted), st.sampled_from([(105,), (15, 7), (5, 7, 3)]))
@settings(max_examples=100, deadline=None)
def test_boxes_add_up_to_the_whole_however_it_is_cut(cuts, shape):
    tensor = torch.randn(105, generator=torch.Generator().manual_seed(1)).reshape(shape)
    assert in_boxes(tensor, cuts) == int(box_fingerprint(whole("t", tensor))) != 0


def test_columns_add_up_too_and_pieces_change_nothing(monkeypatch):
    tensor = torch.randn(6, 8)
    full = int(box_fingerprint(whole("t", tensor)))
    left, right = (TensorShard("t", (6, 8), (0, begin), tensor[:, begin : begin + 4]) for begin in (0, 4))
    assert int(box_fingerprint(left) + box_fingerprint(right)) == full
    monkeypatch.setattr(module, "_CHUNK", 16)
    assert int(box_fingerprint(whole("t", tensor))) == full
    moved = TensorShard("t", (6, 8), (0, 0), tensor[:, 4:])
    assert int(box_fingerprint(moved)) != int(box_fingerprint(right)), "a box has its place"


def test_of_boxes_too_every_change_shows():
    tensor = torch.arange(48.0).reshape(6, 8)
    before = int(box_fingerprint(whole("t", tensor)))
    swapped, flipped = tensor.clone(), tensor.clone()
    swapped[[0, 5]] = tensor[[5, 0]]
    flipped[3, 3] = -flipped[3, 3]
    assert len({before, int(box_fingerprint(whole("t", swapped))), int(box_fingerprint(whole("t", flipped)))}) == 3
