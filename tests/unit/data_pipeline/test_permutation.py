"""The order of blocks: a bijection, the same in Python and numpy, without visible structure."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import DataError
from data_pipeline.permutation import Permutation, block_permutation, permutation_key


def make(size: int, seed: int = 0, name: str = "python", epoch: int = 0) -> Permutation:
    return Permutation(size, permutation_key(seed, name, epoch))


@given(st.integers(1, 3000), st.integers(0, 2**64))
@settings(max_examples=40, deadline=None)
def test_it_is_a_bijection(size, seed):
    assert sorted(make(size, seed).many(np.arange(size)).tolist()) == list(range(size))


@given(st.integers(1, 1 << 63), st.lists(st.integers(0, (1 << 63) - 1), min_size=1, max_size=8))
@settings(max_examples=60, deadline=None)
def test_python_and_numpy_agree(size, indices):
    permutation = make(size)
    indices = [index % size for index in indices]
    assert [permutation(index) for index in indices] == permutation.many(np.array(indices)).tolist()


def test_seed_name_and_epoch_each_change_the_order():
    orders = [
        make(1000, *key).many(np.arange(1000)).tolist() for key in ((0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1))
    ]
    for i, first in enumerate(orders):
        for second in orders[:i]:
            # Two random orders of 1000 agree in about one place.
            assert sum(a == b for a, b in zip(first, second, strict=True)) < 10


@pytest.mark.parametrize("size", [10_000, 65_537, 1_000_000, 4_394_531_250])
def test_images_are_uniform_and_uncorrelated(size):
    permutation = make(size, seed=3)
    count = 10_000
    images = permutation.many(np.arange(count)).astype(np.float64) / size
    # Chi-square over 50 bins: mean 49, standard deviation 9.9. A full permutation of 10,000 is exactly uniform.
    histogram = np.histogram(images, bins=50, range=(0, 1))[0]
    assert ((histogram - count / 50) ** 2 / (count / 50)).sum() < 49 + 5 * 9.9
    for lag in (1, 2, 3, 16, 256):
        assert abs(np.corrcoef(images[:-lag], images[lag:])[0, 1]) < 5 / np.sqrt(count)
    assert abs(np.corrcoef(images, np.arange(count))[0, 1]) < 5 / np.sqrt(count)
    neighbours = np.abs(np.diff(images * size)) <= 1.5
    assert neighbours.sum() <= 12  # expected: 2 * count / size <= 2


def assert_looks_random(size: int, images: np.ndarray) -> None:
    """Images of successive indices: uniform in their high and low bits, in pairs, and serially uncorrelated."""
    count = len(images)
    share = images.astype(np.float64) / size
    assert _chi_square(np.histogram(share, bins=256, range=(0, 1))[0]) < 5
    assert _chi_square(np.bincount((images % np.uint64(64)).astype(int), minlength=64)) < 5
    pairs = (share[:-1:2] * 16).astype(int) * 16 + (share[1::2] * 16).astype(int)
    assert _chi_square(np.bincount(pairs, minlength=256)) < 5
    for lag in (1, 2, 3, 5, 7, 16, 64, 255, 256, 1024, 4096):
        assert abs(np.corrcoef(share[:-lag], share[lag:])[0, 1]) < 5 / np.sqrt(count - lag), lag
    steps = np.diff(share) % 1
    assert _chi_square(np.histogram(steps, bins=256, range=(0, 1))[0]) < 5
    rises = int((np.diff(share) > 0).sum())  # of a random order: (count - 1) / 2, variance (count + 1) / 12
    assert abs(rises - (count - 1) / 2) < 5 * np.sqrt((count + 1) / 12)


def _chi_square(histogram: np.ndarray) -> float:
    """How many standard deviations the chi-square statistic lies above its mean, for equal expectations."""
    expected = histogram.sum() / len(histogram)
    freedom = len(histogram) - 1
    return (((histogram - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom)


SIZES = [10_000, 1_000_000, 2**32 + 12_345, 4_394_531_250, 2**63]


@pytest.mark.parametrize("size", SIZES)
def test_orders_pass_the_tests_of_random_ones(size):
    count = min(size, 200_000)
    for start in {0, (size - count) // 2}:
        indices = np.uint64(start) + np.arange(count, dtype=np.uint64)
        assert_looks_random(size, make(size, seed=7).many(indices))


def test_a_whole_order_of_a_million_is_uncorrelated():
    """With four rounds, this seed correlates indices that lie 1024 apart by 0.8%, eight standard deviations."""
    assert_looks_random(1_000_000, make(1_000_000, seed=13, epoch=1).many(np.arange(1_000_000)))


@pytest.mark.exhaustive
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("seed", range(20))
def test_orders_of_many_seeds_pass_the_tests_of_random_ones(size, seed):
    count = min(size, 2_000_000)
    assert_looks_random(size, make(size, seed=seed, epoch=seed % 3).many(np.arange(count, dtype=np.uint64)))


def test_a_plain_multiplicative_order_fails_them():
    """The tests can fail: an affine order, which is a bijection too, is caught."""
    size = 1_000_003
    with pytest.raises(AssertionError):
        assert_looks_random(size, (np.arange(200_000, dtype=np.uint64) * np.uint64(7919)) % np.uint64(size))


@pytest.mark.parametrize("size", [2, 3, 5, 12])
def test_small_domains_reach_every_place_equally(size):
    # Where index 0 goes over 3000 keys: each place 3000 / size times, within 6 standard deviations.
    places = np.bincount([make(size, seed)(0) for seed in range(3000)], minlength=size)
    expected = 3000 / size
    assert np.abs(places - expected).max() < 6 * np.sqrt(expected)


def test_successive_epochs_are_uncorrelated():
    first, second = (make(20_000, epoch=epoch).many(np.arange(20_000)).astype(float) for epoch in (0, 1))
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 / np.sqrt(20_000)


def test_sizes():
    assert block_permutation(1, 0, "a", 0)(0) == 0
    with pytest.raises(DataError, match=r"1\.\.2\^63"):
        make(0)
