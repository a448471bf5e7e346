"""Which documents are looked at."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.stream import heldout_batches
from loopcoder_train.config import UserError
from loopcoder_train.diagnostics.samples import document_spans, fair_shares, select_samples
from tests.unit.evaluation.corpus import make_corpus

S = 32


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus") / "corpus", heldout_documents=12)


def test_spans_are_documents_without_what_predicts_nothing():
    documents = np.array([0, 0, 0, 1, 2, 2, 3, 3])
    labels = np.array([5, 6, -100, -100, 7, 8, -100, -100])
    assert document_spans(documents, labels) == [(0, 2), (4, 6)]


def test_every_document_of_the_held_out_rows_is_found(corpus):
    selection = select_samples(corpus, S, 10_000, 2)
    found = sum(len(sample) for row in selection.rows for sample in row.samples)
    supervised = 0
    for batch in heldout_batches(corpus, S, 1):
        for first, stop in document_spans(batch.document_ids[0], batch.labels[0]):
            supervised += stop - first if stop - first >= 2 else 0
    assert found == supervised == selection.tokens > 0
    for row in selection.rows:
        labels, documents = row.batch.labels[0], row.batch.document_ids[0]
        for sample in row.samples:
            part = slice(sample.first, sample.stop)
            assert (labels[part] != -100).all() and documents[part].unique().numel() == 1
            assert sample.first == 0 or documents[sample.first - 1] != documents[sample.first]


@pytest.mark.parametrize("row_length", [S, "ends with a document"])
def test_parts_of_a_document_bear_its_number(corpus, row_length):
    """A document is known by how many end tokens its source has before it."""
    eod = corpus.manifest.end_of_document_id
    if row_length == "ends with a document":
        row_length = int(np.flatnonzero(corpus.tokens(0, "heldout").read(0, 200) == eod)[1]) + 1
    selection = select_samples(corpus, row_length, 10_000, 2)
    parts = {}  # number -> (source, end tokens before) of every sample that bears it
    for row in selection.rows:
        source = int(row.batch.source_ids[0])
        tokens = corpus.tokens(source, "heldout")
        whole = tokens.read(0, tokens.num_tokens)
        inputs = row.batch.input_ids[0].numpy()
        begins = range(0, len(whole), row_length)
        same = [at for at in begins if np.array_equal(whole[at : at + row_length], inputs[: len(whole) - at])]
        (first_of_row,) = same
        for sample in row.samples:
            ends_before = int((whole[: first_of_row + sample.first] == eod).sum())
            parts.setdefault(sample.document, []).append((source, ends_before))
    assert all(len(set(documents)) == 1 for documents in parts.values())
    assert len({documents[0] for documents in parts.values()}) == len(parts) == selection.num_documents
    assert selection.num_documents < selection.num_samples, "some documents must go on in the next row"


def test_sources_share_alike_and_short_documents_are_counted(corpus):
    selection = select_samples(corpus, S, 9, 8)
    assert selection.by_source == {"python": 3, "c": 3, "docs": 3}
    assert selection.num_samples == 9
    strict = select_samples(corpus, S, 10_000, 20)
    assert strict.too_short > 0
    assert all(len(sample) >= 20 for row in strict.rows for sample in row.samples)


def test_nothing_long_enough_is_a_users_error(corpus, tmp_path):
    with pytest.raises(UserError, match="min_sample_tokens=33"):
        select_samples(corpus, S, 5, 33)
    with pytest.raises(UserError, match="larger held-out share"):
        select_samples(make_corpus(tmp_path / "none", heldout_documents=0), S, 5, 2)


@settings(deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=12), st.integers(1, 200))
def test_fair_shares(available, wanted):
    shares = fair_shares(available, wanted)
    assert sum(shares) == min(wanted, sum(available))
    assert all(0 <= share <= most for share, most in zip(shares, available, strict=True))
    cut = [share for share, most in zip(shares, available, strict=True) if share < most]
    assert not cut or max(cut) - min(cut) <= 1  # nobody gets more than another who could have had it
    assert not cut or max(shares) <= max(cut) + 1
