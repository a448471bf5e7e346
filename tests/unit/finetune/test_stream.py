"""Batches are a function of plan, seed and number; packed is alone; any number of ranks reads the same rows."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch

from data_pipeline.errors import DataError
from data_pipeline.loader import StreamLoader
from loopcoder_train.finetune.plan_making import prepare_plan
from loopcoder_train.finetune.stream import ConversationStream, heldout_rows, rows_of
from loopcoder_train.model import build_model
from loopcoder_train.model.loss import token_losses
from tests.conftest import RELEASED_PRESET, randomize, small_model
from tests.unit.finetune.conftest import jsonl, options, rows

FIELDS = ("input_ids", "labels", "document_ids", "source_ids")


@pytest.fixture(scope="module")
def plan(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan")
    return prepare_plan(folder / "run", options(jsonl(folder / "a.jsonl", rows(40, words=6))), corpus, 160)


def stream(plan, size=4, seed=0):
    return ConversationStream(plan, seed=seed, global_batch_size=size)


def test_a_packed_conversation_has_the_loss_it_has_alone(plan, corpus):
    model = small_model(num_loops=2, vocab_size=corpus.manifest.vocab_size, **RELEASED_PRESET)
    model = randomize(build_model(model)).double()
    number = max(range(plan.num_rows), key=lambda row: len(plan.row(row)))
    batch = rows_of(plan, [number])
    assert batch.document_ids.max() >= 2

    def losses(inputs, labels, documents):
        inputs, labels, documents = (
            torch.from_numpy(np.asarray(x, dtype=np.int64)) for x in (inputs, labels, documents)
        )
        return token_losses(model(inputs, documents), labels)

    with torch.no_grad():
        packed = losses(batch.input_ids, batch.labels, batch.document_ids)[0]
        for document, (tokens, supervised) in enumerate(plan.row(number)):
            labels = np.full(len(tokens), -100)
            labels[:-1] = np.where(supervised[1:], tokens[1:].astype(np.int64), -100)
            alone = losses(tokens[None], labels[None], np.zeros((1, len(tokens))))[0]
            inside = torch.from_numpy(batch.document_ids[0] == document)
            torch.testing.assert_close(packed[inside], alone, rtol=1e-5, atol=1e-6)  # losses are taken in fp32


def test_every_row_comes_once_per_epoch_in_another_order(plan):
    read, count = stream(plan), plan.train_rows
    epochs = [[read.row_at(position) for position in range(e * count, (e + 1) * count)] for e in range(3)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    assert all(a != b for a, b in pairwise(epochs))
    assert [stream(plan, seed=1).row_at(p) for p in range(count)] != epochs[0]


@pytest.mark.parametrize(("ranks", "micro"), [(1, 4), (1, 1), (2, 2), (2, 1), (4, 1)])
def test_any_number_of_ranks_reads_the_same_rows(plan, ranks, micro):
    whole = [stream(plan).read(number) for number in range(3, 7)]
    sizes = {"micro_batch_size": micro, "data_parallel_size": ranks}
    loaders = [
        StreamLoader(stream(plan), start_step=3, num_steps=None, data_parallel_rank=rank, **sizes)
        for rank in range(ranks)
    ]
    for expected in whole:
        parts = [part for loader in loaders for part in next(loader)]
        assert all(len(part) == micro for part in parts)
        for name in FIELDS:
            assert np.array_equal(np.concatenate([getattr(part, name) for part in parts]), getattr(expected, name))
    for loader in loaders:
        loader.close()


def test_the_state_goes_on_where_it_stands_and_notices_other_batches(plan, corpus, tmp_path):
    own = stream(plan)
    state = json.loads(json.dumps(own.state(7)))
    assert len(json.dumps(state)) < 1000
    assert own.check_state(state) == 7
    other = prepare_plan(tmp_path / "run", options(jsonl(tmp_path / "b.jsonl", rows(41))), corpus, 160)
    for changed, key in ((stream(plan, seed=1), "seed"), (stream(plan, 2), "batch_size"), (stream(other), "plan_hash")):
        with pytest.raises(DataError, match=key):
            changed.check_state(state)
    for broken in ({}, state | {"batch": -1}, state | {"batch": "7"}):
        with pytest.raises(DataError, match="batch"):
            own.check_state(broken)


def test_a_part_of_the_held_out_rows_is_spread_over_them(corpus, tmp_path):
    path = jsonl(tmp_path / "a.jsonl", rows(80, words=6))
    plan = prepare_plan(tmp_path / "run", options(path, heldout_share=0.5), corpus, 160)
    everything = np.concatenate([batch.input_ids for batch in heldout_rows(plan, 1, None)])
    some = np.concatenate([batch.input_ids for batch in heldout_rows(plan, 2, 3)])
    total = plan.num_rows - plan.train_rows
    assert len(everything) == total > 6 and len(some) == 3
    assert np.array_equal(some, everything[[0, total // 3, 2 * total // 3]])


def test_too_few_rows_or_too_many_epochs_are_one_line(plan):
    with pytest.raises(DataError, match=r"0 whole steps per epoch"):
        stream(plan, plan.train_rows + 1)
    size = plan.train_rows
    stream(plan, size).check_epochs(4, 4.0)
    stream(plan, size).check_epochs(400, float("inf"))
    with pytest.raises(DataError, match=r"read 5.00 times, more than finetune.max_epochs=4; set training.num_steps=4"):
        stream(plan, size).check_epochs(5, 4.0)
