"""Documents seen before are dropped: those that differ in nothing, or only in case, numbers and white space.

Licence years, version numbers and re-indented copies would otherwise sit on both sides of the held-out split, which
is made by the hash of the same normalised content (split.py). Copies with other changes need near-duplicate search,
which is near_dedup.py.
"""

import re

import xxhash

_NUMBERS = re.compile(r"\d+(?:\.\d+)*")  # 1.10.2 as one number: versions differ in their parts
IDENTICAL = "identical content"
SAME_BUT_FOR_DETAILS = "identical but for case, digits and white space"


def normalise(text: str) -> str:
    """The text with case folded, white space collapsed, and every number or version written 0."""
    return _NUMBERS.sub("0", " ".join(text.casefold().split()))


def normalised_hash(text: str) -> int:
    """128-bit hash of the normalised text."""
    return xxhash.xxh3_128_intdigest(normalise(text).encode())
