"""Text -> words -> hashes of n words in a row. Near deduplication and decontamination compare texts by these.

The journey of a text: scripts that put no spaces between words (Chinese, Japanese, Thai ...) are split into characters
-> lower case -> punctuation becomes spaces -> white space is collapsed -> diacritics are removed: the words, joined by
one space. Digits are kept, so tables that differ only in their numbers stay different. Apart from the first step and
the digits this is datatrove's `simplify_text`, several times as fast, and the tests hold it to be equal. The hash of a
shingle is XXH64 of its words joined by a space, like there.
"""

import functools
import re
import unicodedata

import numpy as np
import xxhash

_SPACE = 32
# Kana, Han and its extensions, Thai, Lao, Myanmar, Khmer.
UNSPACED_CHARACTERS = (
    "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
)
_UNSPACED = re.compile(f"[{UNSPACED_CHARACTERS}]")


def split_unspaced(text: str) -> str:
    """The text with a space on both sides of every character of a script that is written without spaces."""
    return text if text.isascii() else _UNSPACED.sub(r" \g<0> ", text)


def word_bytes(text: str) -> bytes:
    """The words of a text as UTF-8, joined by one space; empty if it has none. Linear in the length."""
    simple = split_unspaced(text).lower().translate(_punctuation_to_spaces())
    if not simple.isascii():
        simple = _without_marks(" ".join(simple.split()))
    return " ".join(simple.split()).encode()


@functools.cache
def _punctuation_to_spaces() -> dict[int, int]:
    from datatrove.utils.text import PUNCTUATION_TRANS

    return PUNCTUATION_TRANS


def _without_marks(text: str) -> str:
    decomposed = unicodedata.normalize("NFD", text)
    marks = {ord(c): None for c in set(decomposed) if unicodedata.category(c) == "Mn"}
    return decomposed.translate(marks) if marks else decomposed


def shingle_hashes(words: bytes, num_words: int) -> np.ndarray:
    """XXH64 [W - num_words + 1] uint64 of every run of `num_words` words, in order; empty if there are fewer."""
    if not words:
        return np.empty(0, dtype=np.uint64)
    spaces = np.flatnonzero(np.frombuffer(words, dtype=np.uint8) == _SPACE)
    starts, ends = np.append(0, spaces + 1), np.append(spaces, len(words))
    count = starts.size - num_words + 1
    if count <= 0:
        return np.empty(0, dtype=np.uint64)
    slices = map(slice, starts[:count].tolist(), ends[num_words - 1 :].tolist())
    return np.fromiter(map(xxhash.xxh64_intdigest, map(words.__getitem__, slices)), dtype=np.uint64, count=count)
