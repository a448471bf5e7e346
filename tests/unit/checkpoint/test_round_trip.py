"""What was saved in one layout is read bit for bit in any other, and wrong shards never become a checkpoint."""

import json
from itertools import chain
from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from loopcoder_train.checkpoint import Checkpoint, CheckpointError, find_checkpoint, take_snapshot
from loopcoder_train.model.state import TensorShard, whole
from tests.unit.checkpoint.builders import assert_holds, cut, on_ranks, save_on_ranks, save_step

CUTS = ("rows", "columns", "flat")


def test_one_process_round_trip(tmp_path):
    report = save_step(tmp_path, 7)
    found = find_checkpoint(tmp_path)
    assert found.rejected == [] and not found.damaged
    assert_holds(found.checkpoint, 7)
    assert found.checkpoint.path == report.path == tmp_path / "checkpoints" / "step-00000007"
    assert found.checkpoint.rank_state(0, 1) == {"rng": [7]}
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step-00000007\n"
    files = [path for path in report.path.iterdir() if path.name != "COMMIT"]
    assert report.total_bytes == sum(path.stat().st_size for path in files)


def test_a_one_process_file_is_an_ordinary_safetensors_file(tmp_path):
    path = save_step(tmp_path, 7).path / "tensors-00000-of-00001.safetensors"
    assert torch.equal(load_file(path)["model/embed"], Checkpoint(path.parent).read_tensor("model/embed"))


def test_tensors_are_aligned_in_the_file(tmp_path):
    shards = [
        whole("a", torch.ones(3, dtype=torch.int8)),
        whole("b", torch.ones(2).double()),
        whole("c", torch.ones(1)),
    ]
    save_on_ranks(tmp_path, 1, [shards])
    content = (tmp_path / "checkpoints/step-00000001/tensors-00000-of-00001.safetensors").read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    for key, alignment in (("a", 1), ("b", 8), ("c", 4)):
        assert (8 + size + header[key]["data_offsets"][0]) % alignment == 0, key


@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(1, 7), max_size=3).map(tuple),
    saved=st.tuples(st.sampled_from(CUTS), st.integers(1, 4)),
    wanted=st.tuples(st.sampled_from(CUTS), st.integers(1, 4)),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.int64]),
)
def test_any_layout_reads_any_other(tmp_path_factory, shape, saved, wanted, dtype):
    run_dir = tmp_path_factory.mktemp("run")
    tensors = {
        name: (torch.arange(prod(shape)) + start).reshape(shape).to(dtype) for name, start in (("a", 1), ("b", 9))
    }
    cuts = [cut(name, tensor, *saved) for name, tensor in tensors.items()]
    shards_by_rank = [list(chain(*shards)) for shards in zip(*cuts, strict=True)]
    for outcome in save_on_ranks(run_dir, 3, shards_by_rank):
        assert not isinstance(outcome, BaseException), outcome

    found = on_ranks(2, lambda ranks: find_checkpoint(run_dir, ranks=ranks))
    for name, tensor in tensors.items():
        target = torch.full_like(tensor, -1)
        for shards in cut(name, target, *wanted):
            found[1].checkpoint.fill(shards)
        assert torch.equal(target, tensor)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_random_splits(tmp_path_factory, data):
    """Boxes from random recursive cuts, dealt to random ranks, read through other random boxes."""
    shape = tuple(data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=3)))
    tensor = torch.randn(shape)
    shards_by_rank = [[], [], []]
    for offsets, lengths in _random_boxes(data, shape):
        slices = tuple(slice(o, o + n) for o, n in zip(offsets, lengths, strict=True))
        shards_by_rank[data.draw(st.integers(0, 2))].append(TensorShard("w", shape, offsets, tensor[slices]))
    run_dir = tmp_path_factory.mktemp("run")
    save_on_ranks(run_dir, 1, shards_by_rank)
    checkpoint = find_checkpoint(run_dir).checkpoint
    for offsets, lengths in _random_boxes(data, shape):
        slices = tuple(slice(o, o + n) for o, n in zip(offsets, lengths, strict=True))
        target = torch.zeros(lengths, dtype=torch.float64)
        checkpoint.fill([TensorShard("w", shape, offsets, target)])
        assert torch.equal(target, tensor[slices].double())


def _random_boxes(data, shape):
    boxes = [((0,) * len(shape), shape)]
    for _ in range(data.draw(st.integers(0, 6))):
        offsets, lengths = boxes.pop(data.draw(st.integers(0, len(boxes) - 1)))
        dim = data.draw(st.integers(0, len(shape) - 1))
        at = data.draw(st.integers(0, lengths[dim]))
        for start, length in ((0, at), (at, lengths[dim] - at)):
            moved = tuple(o + start if d == dim else o for d, o in enumerate(offsets))
            boxes.append((moved, tuple(length if d == dim else n for d, n in enumerate(lengths))))
    return boxes


def test_fill_casts_and_fills_views_and_parameters(tmp_path):
    save_step(tmp_path, 7)
    checkpoint = find_checkpoint(tmp_path).checkpoint
    embed = checkpoint.read_tensor("model/embed")
    buffer = torch.zeros(4, 12, dtype=torch.bfloat16)
    parameter = torch.nn.Parameter(torch.zeros(6, 4))
    checkpoint.fill([whole("model/embed", buffer[:, ::2].t()), whole("model/embed", parameter)])
    assert torch.equal(buffer[:, ::2].t(), embed.bfloat16()) and not buffer[:, 1::2].any()
    assert torch.equal(parameter, embed) and parameter.requires_grad
    assert checkpoint.read_tensor("model/embed", torch.float64).dtype == torch.float64


def test_missing_name_and_wrong_shape_are_named(tmp_path):
    save_step(tmp_path, 7)
    checkpoint = find_checkpoint(tmp_path).checkpoint
    with pytest.raises(CheckpointError, match="no tensor model/gates"):
        checkpoint.fill([whole("model/gates", torch.zeros(2))])
    with pytest.raises(CheckpointError, match="no tensor model/gates"):
        checkpoint.read_tensor("model/gates")
    with pytest.raises(CheckpointError, match=r"model/embed has shape \[6, 4\], the model wants \[6, 5\]"):
        checkpoint.fill([whole("model/embed", torch.zeros(6, 5))])


def test_rank_state_only_for_the_same_number_of_processes(tmp_path):
    save_on_ranks(tmp_path, 1, cut("w", torch.zeros(4), "rows", 2))
    checkpoint = find_checkpoint(tmp_path).checkpoint
    assert [checkpoint.rank_state(rank, 2) for rank in (0, 1)] == [{"rank": 0}, {"rank": 1}]
    assert checkpoint.rank_state(0, 1) is None and checkpoint.world_size == 2


def test_only_owners_write_and_ranks_without_tensors_write_no_file(tmp_path):
    replica = TensorShard("w", (4,), (0,), torch.full((4,), 9.0), owner=False)
    save_on_ranks(tmp_path, 1, [[replica], [whole("w", torch.ones(4))], [replica]])
    checkpoint = find_checkpoint(tmp_path).checkpoint
    assert torch.equal(checkpoint.read_tensor("w"), torch.ones(4))
    assert [path.name for path in checkpoint.path.glob("*.safetensors")] == ["tensors-00000-of-00001.safetensors"]


def test_empty_tensors_and_empty_boxes(tmp_path):
    shards = [
        [whole("empty", torch.zeros(0, 3)), TensorShard("w", (2,), (2,), torch.zeros(0))],
        [whole("w", torch.ones(2))],
    ]
    save_on_ranks(tmp_path, 1, shards)
    checkpoint = find_checkpoint(tmp_path).checkpoint
    assert checkpoint.read_tensor("empty").shape == (0, 3)
    checkpoint.fill([TensorShard("w", (2,), (1,), torch.zeros(0))])


@pytest.mark.parametrize(
    ("shards_by_rank", "message"),
    [
        ([[whole("w", torch.ones(4))], [whole("w", torch.ones(4))]], "w: .*elements twice"),
        ([[TensorShard("w", (4,), (0,), torch.ones(3))], [TensorShard("w", (4,), (2,), torch.ones(2))]], "w: .*twice"),
        ([[TensorShard("w", (4,), (0,), torch.ones(2))], []], "w: .*has 2 of 4 elements"),
        ([[TensorShard("w", (4,), (0,), torch.ones(2))], [TensorShard("w", (5,), (2,), torch.ones(2))]], "w: owned as"),
        (
            [[TensorShard("w", (4,), (0,), torch.ones(2))], [TensorShard("w", (4,), (2,), torch.ones(2).int())]],
            "w: owned",
        ),
        ([[whole("s", torch.tensor(1.0))], [whole("s", torch.tensor(1.0))]], "s: .*elements twice"),
        # Equal volume: one quarter twice, one quarter never.
        (
            [
                [TensorShard("w", (2, 2), (0, 0), torch.ones(2, 1))],
                [
                    TensorShard("w", (2, 2), (0, 1), torch.ones(1, 1)),
                    TensorShard("w", (2, 2), (0, 0), torch.ones(1, 1)),
                ],
            ],
            "w: .*elements twice",
        ),
    ],
)
def test_wrong_ownership_is_an_assertion_on_every_rank(tmp_path, shards_by_rank, message):
    for outcome in save_on_ranks(tmp_path, 1, shards_by_rank):
        with pytest.raises(AssertionError, match=message):
            raise outcome
    assert find_checkpoint(tmp_path).checkpoint is None and not (tmp_path / "checkpoints").exists()


def test_owning_a_box_twice_on_one_rank_is_an_assertion():
    with pytest.raises(AssertionError, match="w: this rank owns"):
        take_snapshot(1, [whole("w", torch.ones(4)), whole("w", torch.ones(4))], {}, None)


@pytest.mark.parametrize("bad", [{"a": (1, 2)}, {"a": [{1: 2}]}, {"a": torch.tensor(1)}])
def test_state_that_json_would_change_is_an_assertion(bad):
    with pytest.raises(AssertionError, match=r"state\['a'\]"):
        take_snapshot(1, [], bad, None)


def test_snapshot_is_independent_of_the_live_tensors(tmp_path):
    live = torch.arange(10.0).reshape(2, 5)
    snapshot = take_snapshot(1, [whole("columns", live[:, 1:3]), whole("again", live[:, 1:3])], {}, None)
    live.zero_()
    copy = snapshot.tensors["columns"]
    assert torch.equal(copy, torch.tensor([[1.0, 2.0], [6.0, 7.0]])) and copy.is_contiguous()
    assert copy.untyped_storage().nbytes() == copy.nbytes  # the box only, not the storage it was cut from
    assert snapshot.tensors["again"] is copy  # one copy of the same memory
