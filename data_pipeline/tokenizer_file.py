"""tokenizer.json -> a backend that loses nothing, or an error that says what it would lose.

The journey of a file: JSON -> every added token becomes a sentinel -> truncation and padding are off -> a text with
every byte of UTF-8 in it must come back as it went in -> no sentinel may come out of its own spelling.
"""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend

from data_pipeline.errors import DataError

# All lead and continuation bytes of UTF-8, and what normalisers, trimmers and prefix spaces are known to change.
_EVERY_BYTE = [
    "".join(map(chr, range(0x800))),
    "".join(chr(code) for code in range(0x800, 0x10FFFF, 0x7FB) if not 0xD800 <= code < 0xE000),
]
_AWKWARD = ["e\u0301", "\u212b", "\ufb01", "A", "x", " x", "x  ", "\n\n x\r\n", "\u2581x", "\ufeffx", "\x00"]
_PROBES = [*_AWKWARD, *_EVERY_BYTE]


def read_tokenizer_file(path: Path) -> Backend:
    """Read and check a tokenizer.json.

    Raises DataError when it is missing, damaged, encodes at random, changes text, or reads sentinels from text.
    """
    backend = _parse(path)
    # An imported file may cut or pad what it encodes: nothing may be lost here.
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    _check_round_trip(path, backend)
    _check_sentinels(path, backend)
    return backend


def _parse(path: Path) -> Backend:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: tokenizer cannot be read ({error.strerror}); give a tokenizer.json") from error
    try:
        parsed = json.loads(content)
        backend = Backend.from_buffer(_with_sentinels(parsed))
    # `from_buffer`, not `from_str`: that one raises a bare Exception for a bad file.
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{path}: not a tokenizer.json ({' '.join(str(error).split())}); give another") from error
    if parsed["model"].get("dropout"):
        raise DataError(
            f"{path}: its model has dropout={parsed['model']['dropout']}, so it encodes at random; remove it"
        )
    return backend


def _with_sentinels(parsed: dict[str, Any]) -> bytes:
    """The file with all added tokens `special`: others are recognised inside documents (`<think>` of Qwen3 is one)."""
    added = [{**token, "special": True} for token in parsed.get("added_tokens") or []]
    return json.dumps({**parsed, "added_tokens": added}).encode()


def _check_round_trip(path: Path, backend: Backend) -> None:
    for probe in _PROBES:
        ids = backend.encode(probe, add_special_tokens=False).ids
        decoded = backend.decode(ids, skip_special_tokens=False)
        if decoded != probe:
            raise DataError(
                f"{path}: does not give back what it encoded ({_shown(probe, decoded)}); only a byte-level BPE without "
                "normalizer and without add_prefix_space does: remove these from it, or give another"
            )


def _shown(probe: str, decoded: str) -> str:
    start = next((i for i, (a, b) in enumerate(zip(probe, decoded, strict=False)) if a != b), 0)
    return f"{probe[start : start + 4]!a} becomes {decoded[start : start + 4]!a}"


def _check_sentinels(path: Path, backend: Backend) -> None:
    for number, token in backend.get_added_tokens_decoder().items():
        if number in backend.encode(token.content, add_special_tokens=False).ids:
            raise DataError(
                f"{path}: its added token {token.content!r} is also an ordinary word; remove it from the model"
            )
