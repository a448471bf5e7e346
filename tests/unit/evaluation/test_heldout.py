import math
from contextlib import suppress

import numpy as np
import pytest
import torch

from data_pipeline.stream import heldout_batches
from loopcoder_train.config import UserError
from loopcoder_train.evaluation.heldout import evaluate_heldout, own_turns, probe_batch
from loopcoder_train.evaluation.report import format_report
from tests.unit.evaluation.corpus import make_corpus

S, BATCH, LIMIT, R = 16, 3, 4, 2


def loss_of(ids, position, loop):
    """Any number that depends on everything."""
    return 1.0 + 0.01 * ids + 0.1 * position + loop


class FakeRank:
    """One data-parallel rank whose sum over ranks is deferred: the other ranks' tensors are added by the test."""

    def __init__(self, rank: int, size: int, others: list[torch.Tensor]) -> None:
        self.data_parallel_rank, self.data_parallel_size = rank, size
        self.others, self.calls, self.own = others, 0, None

    def token_losses(self, batch):
        self.calls += 1
        position = torch.arange(S).expand_as(batch.input_ids)
        losses = torch.stack([loss_of(batch.input_ids, position, loop) for loop in range(R)])
        return torch.where(batch.labels == -100, 0.0, losses).float()

    def sum_over_data_parallel(self, tensor):
        self.own = tensor
        return sum(self.others, tensor)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus") / "corpus")


def expected(corpus) -> dict[str, tuple[np.ndarray, int]]:
    """Per source: summed losses [R] and supervised tokens, row by row in numpy."""
    sums = {}
    for batch in heldout_batches(corpus, S, 1, LIMIT):
        used = batch.labels[0] != -100
        losses = [loss_of(batch.input_ids[0], np.arange(S), loop)[used].sum() for loop in range(R)]
        name = corpus.manifest.names[batch.source_ids[0]]
        before = sums.get(name, (np.zeros(R), 0))
        sums[name] = (before[0] + losses, before[1] + int(used.sum()))
    return sums


@pytest.mark.parametrize("size", [1, 2, 5])
def test_all_ranks_report_what_numpy_computes(corpus, size):
    own = []
    for rank in range(size):
        engine = FakeRank(rank, size, [])
        with suppress(UserError):  # alone, a rank without a batch of its own has nothing to report
            evaluate_heldout(engine, corpus, S, BATCH, LIMIT)
        own.append(engine)
    assert len({engine.calls for engine in own}) == 1  # every call is a collective
    others = [engine.own for engine in own[1:]]
    report = evaluate_heldout(FakeRank(0, size, others), corpus, S, BATCH, LIMIT)

    sums = expected(corpus)
    assert set(report.by_source) == {"python", "c", "docs"}
    for name, (losses, tokens) in sums.items():
        assert report.by_source[name].supervised_tokens == tokens
        assert report.by_source[name].loop_losses == pytest.approx((losses / tokens).tolist(), rel=1e-6)
    total = sum(tokens for _, tokens in sums.values())
    everything = sum(losses for losses, _ in sums.values()) / total
    assert report.overall.loop_losses == pytest.approx(everything.tolist(), rel=1e-6)
    (python, python_tokens), (c, c_tokens) = sums["python"], sums["c"]
    code = (python[-1] + c[-1]) / (python_tokens + c_tokens)
    assert report.by_kind["code"].loss == pytest.approx(code, rel=1e-6)
    assert set(report.by_language) == {"Python", "C", "English"}


def test_documents_and_bits_per_byte(corpus):
    report = evaluate_heldout(FakeRank(0, 1, []), corpus, S, BATCH, None)
    split = corpus.manifest.sources[0].heldout
    python = report.by_source["python"]
    assert python.supervised_tokens == split.tokens - split.documents
    assert python.documents >= split.documents
    assert python.bits_per_byte == pytest.approx(python.loss * python.supervised_tokens / split.bytes / math.log(2))


def test_turns_cover_every_batch_once():
    class Batch:
        def __init__(self, index):
            self.input_ids = self.document_ids = np.full((1, 2), index)
            self.labels, self.source_ids = np.full((1, 2), index), np.array([0])

    turns = [list(own_turns([Batch(i) for i in range(5)], rank, 3)) for rank in range(3)]
    labels = [[int(batch.labels[0, 0]) for batch in rank] for rank in turns]
    assert labels == [[0, 3], [1, 4], [2, -100]]


def test_without_heldout_documents(tmp_path):
    corpus = make_corpus(tmp_path / "corpus", heldout_documents=0)
    with pytest.raises(UserError, match="no source has held-out documents"):
        evaluate_heldout(FakeRank(0, 1, []), corpus, S, BATCH, LIMIT)


def test_metrics_are_flat_numbers(corpus):
    values = evaluate_heldout(FakeRank(0, 1, []), corpus, S, BATCH, LIMIT).metrics()
    assert all(isinstance(value, int | float) for value in values.values())
    assert values["loss"] == values["loss/loop2"] == pytest.approx(values["loss/loop1"] + 1.0)
    assert {"loss/kind/code", "loss/kind/text", "loss/language/C", "loss/source/docs", "loss/kind/code/loop1"} <= set(
        values
    )


def test_table(corpus):
    report = evaluate_heldout(FakeRank(0, 1, []), corpus, S, BATCH, LIMIT)
    lines = format_report(report, unigram_entropy=6.55, bigram_loss=4.89).splitlines()
    assert lines[0].split() == [
        "held-out",
        "loss,",
        "nats",
        "per",
        "token",
        "loop",
        "1",
        "loop",
        "2",
        "bits/byte",
        "tokens",
    ]
    row = next(line for line in lines if line.startswith("English"))
    assert row.split()[1:3] == [f"{value:.4f}" for value in report.by_language["English"].loop_losses]
    assert lines[-2].split()[-1] == "6.5500" and lines[-1].split()[-1] == "4.8900"
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize(("wanted", "sources"), [(1, {0}), (2, {0, 2}), (3, {0, 1, 2}), (6, {0, 1, 2})])
def test_probe_batch_is_spread_over_the_sources(corpus, wanted, sources):
    batch = probe_batch(corpus, S, wanted)
    assert batch.input_ids.shape == (wanted, S)
    assert set(batch.source_ids.tolist()) == sources
    assert (batch.labels != -100).any()
