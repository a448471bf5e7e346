"""The interval: textbook where it must be, right about how often it holds, absent instead of NaN."""

import numpy as np
import pytest
from scipy import stats

from loopcoder_train.diagnostics.confidence import estimate


def test_one_value_per_document_is_the_textbook_interval():
    values = np.random.default_rng(0).normal(3, 2, size=40)
    found = estimate(values, np.ones(40))
    low, high = stats.t.interval(0.95, 39, loc=values.mean(), scale=stats.sem(values))
    assert (found.mean, found.low, found.high) == pytest.approx((values.mean(), low, high), rel=1e-12)
    assert found.samples == 40


def test_documents_of_equal_length_are_their_means():
    values = np.random.default_rng(1).normal(size=(25, 8))
    found, of_means = estimate(values.sum(1), np.full(25, 8)), estimate(values.mean(1), np.ones(25))
    assert (found.mean, found.half_width) == pytest.approx((of_means.mean, of_means.half_width), rel=1e-12)


def test_tokens_that_belong_together_are_not_taken_for_independent_ones():
    """In 95 of 100 draws of documents whose tokens are alike, the interval holds the true mean."""
    rng = np.random.default_rng(2)
    held = 0
    for _ in range(1000):
        lengths = rng.integers(5, 200, size=60)
        levels = rng.normal(1.0, 1.0, size=60)
        sums = levels * lengths + np.sqrt(lengths) * rng.normal(0, 0.5, size=60)
        found = estimate(sums, lengths)
        held += found.low <= 1.0 <= found.high
    assert 920 <= held <= 970


def test_one_document_has_no_interval_and_none_has_no_number():
    assert estimate([6.0], [3.0]).to_json() == {"mean": 2.0, "ci95": None, "samples": 1}
    assert estimate([0.0, 0.0], [0.0, 0.0]) is None


def test_documents_without_a_value_do_not_count():
    assert estimate([1.0, 0.0, 3.0], [1, 0, 1]) == estimate([1.0, 3.0], [1, 1])
