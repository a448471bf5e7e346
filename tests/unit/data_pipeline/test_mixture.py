"""Promises 1 and 2: exact shares at every prefix, and a bijection in closed form."""

import random
import tracemalloc
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import DataError
from data_pipeline.mixture import Mixture

MAX_DEVIATION = Fraction(168, 100)  # 0.5 * sum(1 / Fibonacci), rounded down: a stricter test


def mixture(text: list[int], code: list[int]) -> Mixture:
    quotas = text + code
    kinds = ["text"] * len(text) + ["code"] * len(code)
    return Mixture([f"s{i}" for i in range(len(quotas))], kinds, quotas)


sides = st.lists(st.integers(0, 60), min_size=1, max_size=12)


@given(sides, sides)
@settings(max_examples=60, deadline=None)
def test_lookup_is_a_bijection_and_count_counts_it(text, code):
    if sum(text + code) == 0:
        return
    mix = mixture(text, code)
    seen = [0] * len(mix.names)
    for position in range(mix.total):
        assert mix.counts(position) == seen
        source, index = mix.lookup(position)
        assert index == seen[source]
        seen[source] += 1
        assert mix.count(source, position + 1) == seen[source]
    assert seen == mix.quotas == mix.counts(mix.total)


@given(sides, sides)
@settings(max_examples=60, deadline=None)
def test_behind_the_planned_positions_the_mixture_goes_on_in_the_same_proportions(text, code):
    """A run that discards batches reads there: nothing twice, nothing left out, every further round as the first."""
    if sum(text + code) == 0:
        return
    mix = mixture(text, code)
    for position in range(mix.total):
        source, index = mix.lookup(position)
        assert mix.lookup(position + 3 * mix.total) == (source, index + 3 * mix.quotas[source])
    assert mix.counts(2 * mix.total) == [2 * quota for quota in mix.quotas]


huge = st.lists(st.integers(1, 1 << 60), min_size=1, max_size=40)


@given(huge, huge, st.data())
@settings(max_examples=150, deadline=None)
def test_every_source_is_within_1_68_sequences_of_its_share_at_any_prefix(text, code, data):
    mix = mixture(text, code)
    prefix = data.draw(st.integers(0, mix.total))
    counts = mix.counts(prefix)
    assert sum(counts) == prefix
    for source, quota in enumerate(mix.quotas):
        assert abs(counts[source] - Fraction(prefix * quota, mix.total)) <= MAX_DEVIATION
        assert counts[source] == mix.count(source, prefix)
    share = Fraction(sum(text), mix.total)
    assert abs(sum(counts[: len(text)]) - prefix * share) <= Fraction(1, 2)


@given(huge, huge, st.data())
@settings(max_examples=100, deadline=None)
def test_lookup_at_any_position_agrees_with_the_counts_before_and_after(text, code, data):
    mix = mixture(text, code)
    position = data.draw(st.integers(0, mix.total - 1))
    source, index = mix.lookup(position)
    before, after = mix.counts(position), mix.counts(position + 1)
    assert before[source] == index
    assert [a - b for a, b in zip(after, before, strict=True)] == [int(i == source) for i in range(len(mix.names))]


def test_text_and_code_are_equal_at_every_even_prefix_of_a_one_to_one_mix():
    mix = mixture([7, 300, 693], [500, 499, 1])
    for prefix in range(0, mix.total + 1, 2):
        assert sum(mix.counts(prefix)[:3]) == prefix // 2


def eighteen_trillion() -> Mixture:
    """103 languages with a long tail and one text source, 18e12 tokens in sequences of 4096."""
    half = 4_394_531_250 // 2
    weights = [1.0 / rank**1.1 for rank in range(1, 104)]
    quotas = [int(half * weight / sum(weights)) for weight in weights]
    quotas[0] += half - sum(quotas)
    return mixture([half], quotas)


def test_eighteen_trillion_tokens_need_no_tables():
    tracemalloc.start()
    mix = eighteen_trillion()
    generator = random.Random(0)
    worst = 0  # in units of 1 / total
    for _ in range(500):
        prefix = generator.randrange(mix.total)
        source, index = mix.lookup(prefix)
        assert mix.count(source, prefix) == index
        for count, quota in zip(mix.counts(prefix), mix.quotas, strict=True):
            worst = max(worst, abs(count * mix.total - prefix * quota))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert Fraction(worst, mix.total) <= MAX_DEVIATION
    assert mix.num_levels <= 20
    assert peak < 5_000_000


@st.composite
def large_mixtures(draw):
    """2..1000 sources, up to 2^63 sequences: long tails, equal sizes, and anything between."""
    count = draw(st.integers(2, 1000))
    num_text = draw(st.integers(1, count - 1))
    total = draw(st.integers(count, 1 << 63))
    slope = draw(st.sampled_from([0.0, 0.5, 1.1, 3.0, 12.0]))
    noise = random.Random(draw(st.integers(0, 2**32)))
    quotas = []
    for size in (num_text, count - num_text):
        weights = [noise.random() / rank**slope for rank in range(1, size + 1)]
        side = [max(1, int(total // 2 * (weight / sum(weights)))) for weight in weights]
        quotas.append(side)
    return mixture(*quotas)


def check_promises(mix: Mixture, prefixes: list[int]) -> None:
    """Promises 1 and 2 at some prefixes: shares, exact counts, and lookup as the inverse of count."""
    text = [i for i, kind in enumerate(mix.kinds) if kind == "text"]
    for prefix in prefixes:
        counts = mix.counts(prefix)
        assert sum(counts) == prefix
        worst = max(abs(c * mix.total - prefix * q) for c, q in zip(counts, mix.quotas, strict=True))
        assert worst <= MAX_DEVIATION * mix.total
        root = sum(counts[i] for i in text) * mix.total - prefix * sum(mix.quotas[i] for i in text)
        assert 2 * abs(root) <= mix.total
        source, index = mix.lookup(prefix)
        assert index == counts[source] == mix.count(source, prefix)
        assert mix.count(source, prefix + 1) == index + 1
    assert mix.counts(mix.total) == mix.quotas


@given(large_mixtures(), st.lists(st.floats(0, 1), min_size=1, max_size=4))
@settings(max_examples=25, deadline=None)
def test_promises_for_a_thousand_sources_and_positions_of_63_bits(mix, places):
    check_promises(mix, [min(mix.total - 1, int(place * mix.total)) for place in places])


@pytest.mark.exhaustive
@given(large_mixtures(), st.lists(st.floats(0, 1), min_size=1, max_size=40))
@settings(max_examples=3000, deadline=None)
def test_promises_for_many_more(mix, places):
    check_promises(mix, [min(mix.total - 1, int(place * mix.total)) for place in places])


def test_a_whole_sequence_of_deviation_does_occur():
    """A bound that nothing comes near would test little: Fibonacci weights make the deepest tree."""
    fibonacci = [1, 1]
    while len(fibonacci) < 24:
        fibonacci.append(sum(fibonacci[-2:]))
    mix = mixture([sum(fibonacci)], fibonacci)
    worst = 0
    for prefix in range(0, mix.total, 7):
        deviations = [abs(c * mix.total - prefix * q) for c, q in zip(mix.counts(prefix), mix.quotas, strict=True)]
        worst = max(worst, max(deviations))
    assert Fraction(9, 10) < Fraction(worst, mix.total) <= MAX_DEVIATION


def test_equal_mixtures_have_equal_hashes_and_others_do_not():
    assert mixture([3], [4, 5]).content_hash == mixture([3], [4, 5]).content_hash
    assert mixture([3], [4, 5]).content_hash != mixture([3], [5, 4]).content_hash


@pytest.mark.parametrize(
    ("names", "kinds", "quotas", "message"),
    [
        (["a"], ["text"], [0], "at least one sequence"),
        (["a", "a"], ["text", "code"], [1, 1], "appears twice"),
        (["a"], ["prose"], [1], "must be one of text, code"),
        (["a"], ["text"], [-1], "must be >= 0"),
        (["a", "b"], ["text"], [1, 1], "one of each"),
    ],
)
def test_lists_that_are_no_mixture(names, kinds, quotas, message):
    with pytest.raises(DataError, match=message):
        Mixture(names, kinds, quotas)


def test_positions_outside_the_stream():
    mix = mixture([2], [2])
    with pytest.raises(DataError, match=r"position -1: must be >= 0"):
        mix.lookup(-1)
    with pytest.raises(DataError, match="prefix -1: must be >= 0"):
        mix.count(0, -1)
    with pytest.raises(DataError, match="source index 2"):
        mix.count(2, 1)
