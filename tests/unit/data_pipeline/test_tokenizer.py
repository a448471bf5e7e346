"""Round trips, sentinels, determinism."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import normalizers

from data_pipeline.errors import DataError
from data_pipeline.tokenizer import (
    CHAT_TOKENS,
    END_OF_DOCUMENT,
    FIM_TOKENS,
    REPOSITORY_TOKENS,
    SPECIAL_TOKENS,
    Tokenizer,
    train_tokenizer,
)
from tests.unit.data_pipeline.tokenizers_like import LLAMA_3, byte_level

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
    assert tokenizer.encode_batch([text, "x"])[0].tolist() == tokenizer.encode(text)


def test_sentinels_have_the_first_ids(tokenizer):
    assert [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] == list(range(len(SPECIAL_TOKENS)))
    assert tokenizer.end_of_document_id == tokenizer.token_to_id(END_OF_DOCUMENT) == 0


@pytest.mark.parametrize("token", SPECIAL_TOKENS)
def test_a_sentinel_spelled_out_in_a_document_is_text(tokenizer, token, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(tokenizer.to_json(), encoding="utf-8")
    for coder in (tokenizer, Tokenizer.load(path)):
        for text in (token, f"a {token}b", f"{token}{token}\n"):
            for ids in (coder.encode(text), coder.encode_batch([text])[0].tolist()):
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
    assert Tokenizer.load(path).encode_batch([text])[0].tolist() == tokenizer.encode(text)


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
    with pytest.raises(DataError, match="end_of_document_token='the' is an ordinary word"):
        Tokenizer.load(path, "the")
    with pytest.raises(DataError, match="vocab_size=10: must be >= 280"):
        train_tokenizer(iter(texts()), 10)


def saved(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.parametrize("pattern", [None, LLAMA_3])
def test_import_of_tokenizers_like_public_ones(pattern, tmp_path):
    """GPT-2's and Llama 3's kind: any text comes back, ids are those of the file, the hash survives a second save."""
    backend = byte_level(texts(), pattern=pattern, special=["<|endoftext|>", "<|im_end|>"])
    path = saved(tmp_path / "tokenizer.json", backend.to_str())
    loaded = Tokenizer.load(path)
    for text in (*texts()[:5], "it's 12345 \u212b e\u0301\r\n\n x"):
        assert loaded.encode(text) == backend.encode(text, add_special_tokens=False).ids
        assert loaded.decode(loaded.encode(text)) == text
    again = Tokenizer.load(saved(tmp_path / "again.json", loaded.to_json()))
    assert (again.content_hash, again.vocab_size) == (loaded.content_hash, loaded.vocab_size)


def test_every_added_token_of_an_imported_file_is_a_sentinel(tokenizer, tmp_path):
    """Qwen 3 marks `<think>` as not special, and so the library would read it from text."""
    content = json.loads(tokenizer.to_json())
    content["added_tokens"].append({
        "id": tokenizer.vocab_size, "content": "<|tool|>", "special": False, "single_word": False, "lstrip": True,
        "rstrip": True, "normalized": False,
    })  # fmt: skip
    loaded = Tokenizer.load(saved(tmp_path / "tokenizer.json", content))
    assert loaded.token_to_id("<|tool|>") == tokenizer.vocab_size == loaded.vocab_size - 1
    text = "a <|tool|> b"
    assert tokenizer.vocab_size not in loaded.encode(text)
    assert loaded.decode(loaded.encode(text)) == text


def test_sentinels_are_asked_for_by_purpose(tokenizer, tmp_path):
    wanted = (*FIM_TOKENS, *REPOSITORY_TOKENS, *CHAT_TOKENS)
    assert tokenizer.sentinel_ids(wanted, "everything") == [SPECIAL_TOKENS.index(token) for token in wanted]
    backend = byte_level(texts(), special=["<|endoftext|>", "<|fim_prefix|>"])
    loaded = Tokenizer.load(saved(tmp_path / "tokenizer.json", backend.to_str()))
    with pytest.raises(
        DataError, match=r"has no sentinel <\|fim_middle\|>, <\|fim_suffix\|>, which fill-in-the-middle"
    ):
        loaded.sentinel_ids(FIM_TOKENS, "fill-in-the-middle")
    with pytest.raises(DataError, match="has no sentinel the"):  # an ordinary word is none
        loaded.sentinel_ids(["the"], "a test")


@pytest.mark.parametrize(
    ("change", "lost"),
    [
        ({"normalizer": normalizers.NFC()}, "becomes"),
        ({"normalizer": normalizers.Lowercase()}, "becomes"),
        ({"normalizer": normalizers.Strip()}, "becomes"),
        ({"add_prefix_space": True}, "becomes ' "),
    ],
)
def test_an_imported_tokenizer_that_loses_text_is_refused(change, lost, tmp_path):
    path = saved(tmp_path / "tokenizer.json", byte_level(texts(), **change).to_str())
    with pytest.raises(DataError, match=rf"does not give back what it encoded \(.*{lost}.*\); only a byte-level BPE"):
        Tokenizer.load(path)


def test_an_imported_tokenizer_without_some_bytes_is_refused(tmp_path):
    content = json.loads(byte_level(texts()).to_str())
    del content["model"]["vocab"]["\u00f4"]  # byte 0xF4 begins the characters of plane 16
    path = saved(tmp_path / "tokenizer.json", content)
    with pytest.raises(DataError, match="does not give back"):
        Tokenizer.load(path)


def test_an_imported_tokenizer_that_reads_sentinels_or_is_random_is_refused(tokenizer, tmp_path):
    content = json.loads(tokenizer.to_json())
    word = "the"
    content["added_tokens"].append(
        {**content["added_tokens"][0], "id": content["model"]["vocab"][word], "content": word}
    )
    with pytest.raises(DataError, match="its added token 'the' is also an ordinary word"):
        Tokenizer.load(saved(tmp_path / "tokenizer.json", content))
    content = json.loads(tokenizer.to_json())
    content["model"]["dropout"] = 0.1
    with pytest.raises(DataError, match=r"its model has dropout=0\.1"):
        Tokenizer.load(saved(tmp_path / "tokenizer.json", content))
