# ruff: noqa: RUF001 (letters that look like others are the point)
"""gigatoken against tokenizers: the same ids, or an error that says who cannot do what."""

import functools
import json
import re
from pathlib import Path

import gigatoken
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import normalizers, pre_tokenizers

import data_pipeline
from data_pipeline import encoders
from data_pipeline.encoders import Encoder, GigatokenEncode, huggingface_encode
from data_pipeline.errors import DataError
from data_pipeline.tokenizer import SPECIAL_TOKENS, Tokenizer, train_tokenizer
from tests.unit.data_pipeline.tokenizers_like import LLAMA_3, NEMOTRON, UNKNOWN_PATTERN, byte_level

ROOT = Path(data_pipeline.__file__).parents[1]
# A line or two in many scripts and languages: letters with marks, no spaces, right to left, emoji, other digits.
SCRIPTS = [
    "Fünf Wörter über Öl.", "Ça va? L'été, c'est l'heure.", "Привет, мир! 42", "Γειά σου Κόσμε",
    "שלום עולם", "مرحبا بالعالم ٤٢", "नमस्ते दुनिया ४२", "হ্যালো বিশ্ব", "வணக்கம் உலகம்", "สวัสดีชาวโลก",
    "ជំរាបសួរ", "မင်္ဂလာပါ", "გამარჯობა", "Բարեւ", "ሰላም", "你好，世界。", "こんにちは、世界！カタカナ", "안녕하세요 세계",
    "Xin chào thế giới", "ᏣᎳᎩ", "🙂🏽👩‍💻 ﷽", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 Ⅻ ½ ²", "it's DON'T we'LL 's 'S ſ's o'clock'd",
    "a\u00a0b\u2003c\u2028d\u0085e\u3000f", "\r\n\t \x0b\x0c\n \n  x", "  x   \n\n\n",
]  # fmt: skip


def project_files() -> list[tuple[str, str]]:
    """The project's own files: Python, YAML, Markdown, TOML, a Makefile."""
    paths = [*ROOT.glob("data_pipeline/**/*.py"), *ROOT.glob("configs/**/*.yaml"), *ROOT.glob("docs/*.md")]
    paths += [ROOT / "pyproject.toml", ROOT / "Makefile", *ROOT.glob("launch/*")]
    return [(path.name, path.read_text(encoding="utf-8")) for path in sorted(paths) if path.is_file()]


FILES = project_files()
TEXTS = [text for _, text in FILES] + SCRIPTS * 3


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return train_tokenizer(iter(TEXTS), 2000)


@functools.cache
def backends() -> dict[str, Backend]:
    special = ["<|endoftext|>", "<|fim_prefix|>"]
    return {
        "ours": Backend.from_str(train_tokenizer(iter(TEXTS), 1200).to_json()),
        "gpt2": byte_level(TEXTS, special=special),
        "llama3": byte_level(TEXTS, pattern=LLAMA_3, special=special),
        "qwen2 removed": byte_level(TEXTS, pattern=encoders_pattern(), behavior="removed"),
        "nemotron": byte_level(TEXTS, pattern=NEMOTRON, special=special),
    }


def encoders_pattern() -> str:
    return json.loads(train_tokenizer(iter(["x"]), 280).to_json())["pre_tokenizer"]["pretokenizers"][0]["pattern"][
        "Regex"
    ]


@pytest.fixture(scope="module", params=["ours", "gpt2", "llama3", "qwen2 removed", "nemotron"])
def both(request):
    """(reference, gigatoken) for one tokenizer."""
    backend = backends()[request.param]
    backend.encode_special_tokens = True
    reference = huggingface_encode(backend)
    return reference, GigatokenEncode(backend.to_str(), reference)


@functools.cache
def fast_of(tokenizer: Tokenizer) -> GigatokenEncode:
    return GigatokenEncode(tokenizer.to_json(), tokenizer._reference)


def assert_same(both, text: str) -> None:
    reference, fast = both
    assert fast(text).tolist() == reference(text).tolist(), ascii(text)


@given(text=st.text(alphabet=st.characters(exclude_categories=("Cs",)), max_size=120))
@settings(max_examples=200, deadline=None)
def test_same_ids_on_any_text(both, text):
    assert_same(both, text)


@given(text=st.text(alphabet="'sStTdDlLmrevV ſ\n\r\t aZé1٤\u0301_-/+<|>​", max_size=40))
@settings(max_examples=400, deadline=None)
def test_same_ids_where_the_alternatives_of_the_pattern_meet(both, text):
    assert_same(both, text)


def test_same_ids_on_files_and_scripts(both):
    for text in TEXTS:
        assert_same(both, text)


@pytest.mark.parametrize("name", ["ours", "nemotron"])
def test_every_code_point_is_of_one_class_for_both(name):
    """`_UNICODE_17` is the only difference, and each of its code points is one (planes 4 to 13 hold none)."""
    reference, fast = seeing_borders(json.loads(backends()[name].to_str()))
    codes = [*range(0xD800), *range(0xE000, 0x40000), *range(0xE0000, 0xF0100), *range(0x10FF00, 0x110000)]
    same, differ = [], []
    for code in codes:
        (differ if encoders._UNICODE_17.match(chr(code)) else same).append(in_context(chr(code)))
    for start in range(0, len(same), 2048):
        text = "".join(same[start : start + 2048])
        assert np.array_equal(fast._tokenizer.encode(text), reference(text)), f"in the 2,048 texts from number {start}"
    equal = [text for text in differ if np.array_equal(fast._tokenizer.encode(text), reference(text))]
    # Marks that Unicode 17 added count as what they were before for patterns without marks.
    assert len(differ) == 4699 and len(equal) < 60
    for text in differ:
        assert np.array_equal(fast(text), reference(text))


def in_context(character: str) -> str:
    return f"a{character}\n{character}a\n!{character}\n {character}\nA{character}\n"


def seeing_borders(content: dict):
    """(reference, gigatoken) of a tokenizer that joins characters to their neighbours in `in_context` unless cut."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    encoded = bytes_to_characters()
    pairs = [(first, encoded[byte]) for first in ["a", "!", encoded[0x20], "A"] for byte in range(0xC2, 0xF5)]
    pairs += [(encoded[byte], "a") for byte in range(0x80, 0xC0)]
    tokens = alphabet + [first + second for first, second in pairs]
    content["model"]["vocab"] = {token: number for number, token in enumerate(tokens)}
    content["model"]["merges"] = [list(pair) for pair in pairs]
    content["added_tokens"] = []
    reference = huggingface_encode(Backend.from_str(json.dumps(content)))
    return reference, GigatokenEncode(json.dumps(content), reference)


def bytes_to_characters() -> dict[int, str]:
    """How ByteLevel prints bytes: printable ones as they are, the others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}


@pytest.mark.parametrize("token", SPECIAL_TOKENS)
def test_gigatoken_never_reads_a_sentinel_from_text(trained, token, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(trained.to_json(), encoding="utf-8")
    fast = Tokenizer.load(path, encoder=Encoder.gigatoken)
    for text in (token, f"a {token}b", f"{token}{token}\n"):
        assert fast.encode(text) == trained.encode(text)
        assert min(fast.encode(text)) >= len(SPECIAL_TOKENS)
        assert fast.decode(fast.encode(text)) == text
    # The library itself would have.
    assert trained.token_to_id(token) in gigatoken.Tokenizer.from_json(trained.to_json()).encode(token)


@given(text=st.text(alphabet=st.characters(exclude_categories=("Cs",)), max_size=200))
@settings(max_examples=200, deadline=None)
def test_round_trip_through_gigatoken(trained, text):
    assert trained.decode(fast_of(trained)(text).tolist()) == text


def test_a_long_line_without_a_space(both):
    assert_same(both, "ab" * 100_000)
    assert_same(both, "=-" * 50_000)


def test_gigatoken_is_loaded_anew_after_so_many_bytes(trained, monkeypatch):
    monkeypatch.setattr(encoders, "_RENEW_BYTES", 1000)
    fast = GigatokenEncode(trained.to_json(), trained._reference)
    used = []
    for _ in range(6):
        assert fast("lambda " * 100).tolist() == trained.encode("lambda " * 100)
        used.append(fast._tokenizer)
    assert used[0] is used[1] and used[1] is not used[2] and used[2] is used[3] and used[3] is not used[4]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"pattern": UNKNOWN_PATTERN}, "no fast pretokenizer"),
        ({"normalizer": normalizers.NFC()}, "it has a normalizer"),
        ({"pattern": LLAMA_3, "behavior": "merged_with_next"}, "its pre_tokenizer is Split [+] ByteLevel, not"),
    ],
)
def test_gigatoken_refuses_what_it_would_do_otherwise(change, reason):
    backend = byte_level(TEXTS, **change)
    with pytest.raises(DataError, match=rf"encoder=gigatoken: cannot .*{reason}.*; set encoder=huggingface$") as error:
        GigatokenEncode(backend.to_str(), huggingface_encode(backend))
    assert "\n" not in str(error.value)


def test_gigatoken_refuses_steps_that_it_would_overlook():
    """Digits before Split, and a ByteLevel that splits once more: gigatoken takes both for Llama 3's."""
    backend = byte_level(TEXTS, pattern=LLAMA_3)
    split, own = json.loads(backend.to_str())["pre_tokenizer"]["pretokenizers"]
    digits = {"type": "Digits", "individual_digits": True}
    for steps in ([digits, split, own], [split, {**own, "use_regex": True}]):
        content = json.loads(backend.to_str())
        content["pre_tokenizer"]["pretokenizers"] = steps
        overlooked = gigatoken.Tokenizer.from_json(json.dumps({**content, "added_tokens": []}))
        other = Backend.from_str(json.dumps(content))
        assert any(overlooked.encode(text).tolist() != other.encode(text).ids for text in (*TEXTS, "x 123 's 1"))
        with pytest.raises(DataError, match="its pre_tokenizer is"):
            GigatokenEncode(json.dumps(content), huggingface_encode(other))


def test_parity_check_counts_documents_and_names_the_first_that_differs(trained, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(trained.to_json(), encoding="utf-8")
    fast = Tokenizer.load(path, encoder=Encoder.gigatoken)
    assert fast.check_parity(FILES) == len(FILES)
    fast._encode = lambda text: fast._reference(text.replace("lambda", "Lambda"))
    documents = [("a.py", "x = 1"), ("b.py", "y = lambda: 2"), ("c.py", "lambda")]
    with pytest.raises(DataError, match=re.escape("b.py: encoder=gigatoken gives other ids than huggingface (token ")):
        fast.check_parity(documents)
