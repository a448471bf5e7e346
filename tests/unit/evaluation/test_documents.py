"""Losses by document do not depend on how documents are cut into rows and batches."""

import numpy as np
import pytest
import torch

from data_pipeline.stream import heldout_batches
from loopcoder_train.evaluation.documents import DocumentLosses
from loopcoder_train.evaluation.heldout import evaluate_heldout
from loopcoder_train.model.loss import IGNORE_INDEX
from tests.unit.evaluation.corpus import make_corpus


class LossOfLabels:
    """Two loops; the loss of a token depends on its label alone."""

    data_parallel_rank, data_parallel_size = 0, 1

    def token_losses(self, batch):
        losses = torch.where(batch.labels == IGNORE_INDEX, 0.0, 1.0 + batch.labels / 7)
        return torch.stack([losses, losses / 2])

    def sum_over_data_parallel(self, tensor):
        return tensor


def table_of(corpus, length: int, batch_size: int):
    engine = DocumentLosses(LossOfLabels())
    report = evaluate_heldout(engine, corpus, length, batch_size, None)
    return engine.table, report


def test_cuts_change_nothing_and_sums_are_those_of_the_report(tmp_path):
    corpus = make_corpus(tmp_path / "corpus")
    whole, report = table_of(corpus, 4096, 1)
    for length, batch_size in ((8, 1), (8, 3), (13, 2), (64, 5)):
        cut, _ = table_of(corpus, length, batch_size)
        assert (cut.sources, cut.tokens) == (whole.sources, whole.tokens), (length, batch_size)
        np.testing.assert_allclose(cut.losses, whole.losses, rtol=1e-12)
    assert sum(whole.tokens) == report.overall.supervised_tokens and min(whole.tokens) >= 1
    means = [sum(column) / sum(whole.tokens) for column in whole.losses]
    assert means == pytest.approx(report.overall.loop_losses, rel=1e-12)


def test_every_document_of_the_held_out_part_is_there_once(tmp_path):
    corpus = make_corpus(tmp_path / "corpus")
    table, _ = table_of(corpus, 8, 2)
    expected = []
    for batch in heldout_batches(corpus, 4096, 1):
        ids, labels = batch.document_ids[0], batch.labels[0]
        counts = [int((labels[ids == document] != IGNORE_INDEX).sum()) for document in np.unique(ids)]
        expected += [count for count in counts if count]
    assert table.tokens == expected and len(expected) > 3
