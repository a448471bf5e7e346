"""Round trips, sentinels, determinism."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import DataError
from data_pipeline.tokenizer import END_OF_DOCUMENT, SPECIAL_TOKENS, Tokenizer, train_tokenizer

_WORDS = [
    "def",
    "return",
    "self",
    "lambda",
    "the",
    "quick",
    "brown",
    "über",
    "漢字",
    "x1",
    "+=",
    "<think>",
    "for",
    "in",
]


def texts() -> list[str]:
    generator = random.Random(0)
    return [" ".join(generator.choices(_WORDS, k=30)) + "\n    " for _ in range(60)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(iter(texts()), 330)


@given(st.text(alphabet=st.characters(exclude_categories=("Cs",)), max_size=200))
@settings(max_examples=300, deadline=None)
def test_round_trip_of_any_text(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "\n\n\t  x",
        "a\r\nb\r",
        "\ufeffx",
        "e\u0301",
        "1234567890",
        "\x00\x7f",
        "\U0001d518🙂🏽",
        " leading",
        "trailing  ",
    ],
)
def test_round_trip_of_awkward_text(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode_batch([text, "x"])[0] == tokenizer.encode(text)


def test_sentinels_have_the_first_ids(tokenizer):
    assert [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] == list(range(len(SPECIAL_TOKENS)))
    assert tokenizer.end_of_document_id == tokenizer.token_to_id(END_OF_DOCUMENT) == 0


@pytest.mark.parametrize("token", SPECIAL_TOKENS)
def test_a_sentinel_spelled_out_in_a_document_is_text(tokenizer, token, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(tokenizer.to_json(), encoding="utf-8")
    for coder in (tokenizer, Tokenizer.load(path)):
        for text in (token, f"a {token}b", f"{token}{token}\n"):
            for ids in (coder.encode(text), coder.encode_batch([text])[0]):
                assert min(ids) >= len(SPECIAL_TOKENS)
                assert coder.decode(ids) == text


def test_digits_are_single(tokenizer):
    assert [tokenizer.decode([i]) for i in tokenizer.encode("x=20260")][-5:] == list("20260")


def test_training_is_deterministic(tokenizer):
    again = train_tokenizer(iter(texts()), 330)
    assert again.content_hash == tokenizer.content_hash
    assert train_tokenizer(iter(texts()), 329).content_hash != tokenizer.content_hash


def test_hash_survives_formatting_and_reading(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(json.loads(tokenizer.to_json()), indent=7), encoding="utf-8")
    loaded = Tokenizer.load(path)
    assert loaded.content_hash == tokenizer.content_hash
    assert (loaded.vocab_size, loaded.end_of_document_id) == (tokenizer.vocab_size, 0)


def test_an_imported_tokenizer_neither_cuts_nor_pads(tokenizer, tmp_path):
    content = json.loads(tokenizer.to_json())
    content["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    content["padding"] = {
        "strategy": {"Fixed": 50}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
        "pad_token": END_OF_DOCUMENT,
    }  # fmt: skip
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    text = "the quick brown lambda for in range"
    assert Tokenizer.load(path).encode(text) == tokenizer.encode(text)
    assert Tokenizer.load(path).encode_batch([text]) == [tokenizer.encode(text)]


def test_bad_tokenizers(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.json"
    with pytest.raises(DataError, match="cannot be read"):
        Tokenizer.load(path)
    for content in ("{}", "nothing", ""):
        path.write_text(content)
        with pytest.raises(DataError, match=r"not a tokenizer\.json"):
            Tokenizer.load(path)
    path.write_text(tokenizer.to_json(), encoding="utf-8")
    with pytest.raises(DataError, match=r"has no token '</s>'; set end_of_document_token"):
        Tokenizer.load(path, "</s>")
    with pytest.raises(DataError, match="vocab_size=10: must be >= 280"):
        train_tokenizer(iter(texts()), 10)
