"""Shares, caps and totals of the quotas."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import DataError
from data_pipeline.manifest import Manifest, SourceInfo, SplitInfo
from data_pipeline.quotas import quotas_for


def manifest(**tokens: int) -> Manifest:
    sources = [
        SourceInfo(
            name=name, kind="text" if name.startswith("t") else "code", language=name, train=SplitInfo(tokens=size)
        )
        for name, size in tokens.items()
    ]
    return Manifest(
        sources=sources, tokenizer_hash="0" * 64, tokenizer_file_sha256="0" * 64, vocab_size=100, end_of_document_id=0,
        dtype="uint16", block_tokens=16,
    )  # fmt: skip


def plan(sources: Manifest, total: int, **options):
    return quotas_for(sources, total, **{"sequence_length": 10, "shuffle_block_tokens": 10, **options})


def test_by_tokens_within_a_side_and_half_each():
    result = plan(manifest(ta=1000, tb=3000, ca=500, cb=500, cc=1000), 400)
    assert result.quotas == [50, 150, 50, 50, 100]
    assert result.repeats == pytest.approx([0.5, 0.5, 1.0, 1.0, 1.0])
    assert result.notes == []


def test_given_shares_are_fractions_of_the_side_and_the_rest_goes_by_tokens():
    result = plan(manifest(t=10_000, ca=4000, cb=3000, cc=1000), 800, shares={"ca": 0.2})
    assert result.quotas == [400, 80, 240, 80]


def test_shares_of_all_sources_are_renormalised_and_say_so():
    result = plan(manifest(t=10_000, ca=4000, cb=4000), 400, shares={"ca": 30, "cb": 10})
    assert result.quotas == [200, 150, 50]
    assert result.notes == ["code: shares add up to 40, renormalised to 1"]


def test_an_excess_goes_to_the_others_of_the_side():
    result = plan(manifest(t=10_000, ca=100, cb=4000), 400, shares={"ca": 0.5, "cb": 0.5}, max_repeats=2)
    assert result.quotas == [200, 20, 180]
    assert "ca: capped at 2 repeats, 20 sequences; 80 more go to the other code sources" in result.notes


def test_a_side_that_cannot_give_enough_says_how_much_is_missing():
    with pytest.raises(
        DataError, match=r"max_repeats=4: the run needs 50,000 code tokens; the corpus has 1,000, so 4,000"
    ):
        plan(manifest(t=100_000, c=1000), 10_000)


def test_one_side_only():
    assert plan(manifest(c=1000), 100, text_share=0).quotas == [100]
    with pytest.raises(DataError, match=r"no text source .* data\.text_share=0"):
        plan(manifest(c=1000), 100)


def test_sources_smaller_than_a_block_are_reported_not_used():
    result = plan(manifest(t=1000, ca=9, cb=1000), 100)
    assert result.quotas == [50, 0, 50]
    assert result.notes == ["ca: smaller than one shuffle block, not used"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shares": {"pyton": 0.5}}, "'pyton' is not in the corpus; nearest: 'python'"),
        ({"shares": {"python": -1}}, "finite number >= 0"),
        ({"shares": {"python": float("nan")}}, "finite number >= 0"),
        ({"shares": {"python": 1.5}}, "leaves nothing for cb"),
        ({"shares": {"python": 0, "cb": 0}}, "every code source has share 0"),
        ({"text_share": 1.5}, "between 0 and 1"),
        ({"max_repeats": 0}, "finite number > 0"),
    ],
)
def test_options(options, message):
    with pytest.raises(DataError, match=message):
        plan(manifest(t=1000, python=1000, cb=1000), 100, **options)


@given(
    st.lists(st.integers(10, 10**6), min_size=1, max_size=8),
    st.lists(st.integers(10, 10**6), min_size=1, max_size=8),
    st.integers(1, 10**5),
    st.floats(0, 1),
)
@settings(max_examples=100, deadline=None)
def test_totals_are_exact_and_no_cap_is_passed(text, code, total, share):
    sources = manifest(**{f"t{i}": n for i, n in enumerate(text)}, **{f"c{i}": n for i, n in enumerate(code)})
    try:
        result = plan(sources, total, text_share=share)
    except DataError as error:
        assert "max_repeats" in str(error)
        return
    assert sum(result.quotas) == total
    assert abs(sum(result.quotas[: len(text)]) - total * share) <= 0.500001
    assert max(result.repeats) <= 4
