"""Fill-in-the-middle: parts reassemble, rates hold, and the function is the one that the golden file remembers."""

import json
import math
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import DataError
from data_pipeline.prepare.fim import PSM, SPM, Fim, FimConfig, find_cut
from data_pipeline.tokenizer import END_OF_DOCUMENT, FIM_TOKENS, SPECIAL_TOKENS, Tokenizer, train_tokenizer
from tests.unit.data_pipeline.tokenizers_like import byte_level

GOLDEN = Path(__file__).parent / "golden" / "fim.json"
PREFIX, MIDDLE, SUFFIX = (SPECIAL_TOKENS.index(token) for token in FIM_TOKENS)
LINES = "".join(f"line number {number} of this\n" for number in range(40))
GOLDEN_TEXTS = [LINES, "x" * 300, "é漢🙂" * 40, "a\r\nb\n" * 30 + "end without a line end", "one line " * 20]
ANY_TEXT = st.text(alphabet=st.characters(exclude_categories=("Cs",)), max_size=150) | st.text(
    alphabet="ab\n", max_size=80
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(iter(GOLDEN_TEXTS), 400)


def always(**changes) -> FimConfig:
    return FimConfig(**({"rate": 1.0, "min_bytes": 8} | changes))


def parts(ids: list[int], layout: str) -> tuple[list[int], list[int], list[int]]:
    """(prefix and middle, or middle alone) ... read back by the sentinels: prefix, middle-or-both, suffix."""
    assert ids[0] == PREFIX
    middle = ids.index(MIDDLE)
    if layout == PSM:
        suffix = ids.index(SUFFIX)
        return ids[1:suffix], ids[middle + 1 :], ids[suffix + 1 : middle]
    assert ids[1] == SUFFIX
    return [], ids[middle + 1 :], ids[2:middle]


@given(text=ANY_TEXT, variant=st.integers(0, 1000), line_rate=st.sampled_from([0.0, 0.5, 1.0]))
@settings(max_examples=300, deadline=None)
def test_parts_put_together_are_the_document(tokenizer, text, variant, line_rate):
    encoded = Fim(always(line_rate=line_rate), tokenizer).encode("s:a.py", text, variant)
    ids = encoded.ids.tolist()
    if len(text.encode()) < 8:
        assert (encoded.layout, ids) == ("", tokenizer.encode(text))
        return
    assert [ids.count(token) for token in (PREFIX, MIDDLE, SUFFIX)] == [1, 1, 1]
    prefix, middle, suffix = parts(ids, encoded.layout)
    assert tokenizer.decode(prefix) + tokenizer.decode(middle) + tokenizer.decode(suffix) == text
    assert encoded.ids.dtype == np.uint32 and ids.count(SPECIAL_TOKENS.index(END_OF_DOCUMENT)) == 0


@given(text=ANY_TEXT, variant=st.integers(0, 1000))
@settings(max_examples=200, deadline=None)
def test_every_part_is_encoded_alone_and_the_middle_is_never_empty(tokenizer, text, variant):
    fim = Fim(always(), tokenizer)
    cut = fim.cut("s:a.py", text, variant)
    if cut is None:
        return
    assert 0 <= cut.start < cut.end <= len(text)
    prefix, middle, suffix = (
        tokenizer.encode(part) for part in (text[: cut.start], text[cut.start : cut.end], text[cut.end :])
    )
    expected = {
        PSM: [PREFIX, *prefix, SUFFIX, *suffix, MIDDLE, *middle],
        SPM: [PREFIX, SUFFIX, *suffix, MIDDLE, *prefix, *middle],
    }
    assert fim.encode("s:a.py", text, variant).ids.tolist() == expected[cut.layout]


def test_line_cuts_are_at_line_starts():
    for number in range(300):
        cut = find_cut(always(line_rate=1.0), f"s:{number}", LINES, 0)
        assert all(place in (0, len(LINES)) or LINES[place - 1] == "\n" for place in (cut.start, cut.end))
    inside = [find_cut(always(line_rate=0.0), f"s:{number}", LINES, 0).start for number in range(300)]
    assert sum(LINES[place - 1] != "\n" for place in inside) > 200
    assert find_cut(always(line_rate=1.0), "s:0", "one line without end", 0) is not None


def test_rates_are_met():
    """10,000 documents; four standard deviations, so that one false alarm in 16,000 would be chance."""
    config = FimConfig(rate=0.5, spm_rate=0.3, line_rate=0.2)
    cuts = [find_cut(config, f"source:{number}.py", LINES, 0) for number in range(10_000)]
    done = [cut for cut in cuts if cut is not None]
    by_line = [cut for cut in done if all(p in (0, len(LINES)) or LINES[p - 1] == "\n" for p in (cut.start, cut.end))]
    assert_rate(len(done), len(cuts), 0.5)
    assert_rate(sum(cut.layout == SPM for cut in done), len(done), 0.3)
    assert_rate(len(by_line), len(done), 0.2, slack=0.003)  # a few character cuts fall on line starts
    both = sum(cut.layout == SPM for cut in by_line)
    assert_rate(both, len(by_line), 0.3)  # layout and kind of cut are independent


def assert_rate(count: int, total: int, rate: float, slack: float = 0.0) -> None:
    assert abs(count - total * rate) <= 4 * math.sqrt(total * rate * (1 - rate)) + slack * total


def test_cuts_are_uniform_over_all_pairs():
    """Chi squared over the 45 pairs of places of a text of nine characters, for ids and for variants."""
    text = "123456789"
    for cuts in (
        [find_cut(always(line_rate=0.0), f"s:{number}", text, 0) for number in range(9_000)],
        [find_cut(always(line_rate=0.0), "s:x", text, variant) for variant in range(9_000)],
    ):
        counts = Counter((cut.start, cut.end) for cut in cuts)
        assert len(counts) == 45
        chi_squared = sum((count - 200) ** 2 / 200 for count in counts.values())
        assert chi_squared < 44 + 4 * math.sqrt(2 * 44)  # 44 degrees of freedom, four standard deviations


def test_variants_and_seeds_are_other_cuts_and_independent():
    config = FimConfig()
    ids = [f"s:{number}" for number in range(2_000)]
    first, second = ([find_cut(config, name, LINES, variant) for name in ids] for variant in (0, 1))
    both = sum(a is not None and b is not None for a, b in zip(first, second, strict=True))
    assert_rate(both, len(ids), 0.25)
    assert all(a != b for a, b in zip(first, second, strict=True) if a and b)
    assert [find_cut(FimConfig(seed=1), name, LINES, 0) for name in ids] != first


def test_neither_order_nor_other_documents_matter(tokenizer):
    fim = Fim(FimConfig(), tokenizer)
    names = [f"s:{number}" for number in range(50)]
    texts = [LINES[number:] for number in range(50)]
    together = fim.encode_batch(names, texts, 3)
    order = random.Random(0).sample(range(50), 50)
    for index in order:
        alone = Fim(FimConfig(), tokenizer).encode(names[index], texts[index], 3)
        assert alone.layout == together[index].layout and np.array_equal(alone.ids, together[index].ids)
    assert {document.layout for document in together} == {"", PSM, SPM}


def test_which_documents_are_eligible(tokenizer):
    fim = Fim(FimConfig(), tokenizer)
    assert fim.applies_to("code", "Python") and not fim.applies_to("text", "Text")
    fim = Fim(FimConfig(languages=["python", "c++"]), tokenizer)
    assert fim.applies_to("code", "C++") and not fim.applies_to("code", "Java")
    assert not Fim(FimConfig(rate=0.0), tokenizer).applies_to("code", "Python")
    config = always(min_bytes=20, max_bytes=40)
    assert [find_cut(config, "s:a", "é" * n, 0) is None for n in (9, 10, 20, 21)] == [True, False, False, True]


def test_a_tokenizer_without_sentinels_can_be_used_only_without_fim(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(byte_level(GOLDEN_TEXTS).to_str(), encoding="utf-8")
    plain = Tokenizer.load(path)
    with pytest.raises(DataError, match=r"has no sentinel .*, which fill-in-the-middle \(fim\.rate > 0\) needs"):
        Fim(FimConfig(), plain)
    assert Fim(FimConfig(rate=0), plain).encode("s:a", LINES, 0).ids.tolist() == plain.encode(LINES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 1.1}, r"fim\.rate=1\.1: must be between 0 and 1"),
        ({"spm_rate": -0.1}, r"fim\.spm_rate=-0\.1"),
        ({"line_rate": float("nan")}, r"fim\.line_rate=nan"),
        ({"min_bytes": 7}, r"fim\.min_bytes=7: must be >= 8"),
        ({"min_bytes": 100, "max_bytes": 99}, r"fim\.max_bytes=99: must be >= min_bytes=100"),
        ({"kinds": ["prose"]}, r"fim\.kinds: 'prose'"),
        ({"languages": ["Pyton"]}, r"fim\.languages='Pyton': not a known language; nearest: 'Python'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(DataError, match=message):
        FimConfig(**options)


def test_the_function_is_the_one_it_was():
    """A corpus records configuration and seed only: with another function, the same build would be another corpus.

    To change it on purpose, delete the file and run this test twice.
    """
    config = always(rate=0.8, line_rate=0.5)
    cuts = []
    for number, text in enumerate(GOLDEN_TEXTS):
        for variant in range(4):
            cut = find_cut(config, f"source:{number}/ä.py", text, variant)
            cuts.append([number, variant, *([cut.start, cut.end, cut.layout] if cut else [None])])
    if not GOLDEN.exists():
        GOLDEN.write_text("[\n" + ",\n".join(json.dumps(row) for row in cuts) + "\n]\n")
        pytest.fail(f"{GOLDEN.name} was missing and has been written: look at it and run again")
    assert cuts == json.loads(GOLDEN.read_text())
