"""Documents seen before are dropped: those that differ in nothing, or only in case, numbers and white space.

Licence years, version numbers and re-indented copies would otherwise sit on both sides of the held-out split, which
is made by the hash of the same normalised content (split.py). Copies with other changes need near-duplicate search,
which is another stage.
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


class SeenDocuments:
    """The hashes of all documents so far (about 200 bytes of memory per document)."""

    def __init__(self) -> None:
        self._exact: set[int] = set()
        self._normalised: set[int] = set()

    def add(self, text: str) -> tuple[int, str | None]:
        """(normalised hash, why it is a duplicate | None), and remember it."""
        exact = xxhash.xxh3_128_intdigest(text.encode())
        digest = normalised_hash(text)
        reason = None
        if exact in self._exact:
            reason = IDENTICAL
        elif digest in self._normalised:
            reason = SAME_BUT_FOR_DETAILS
        self._exact.add(exact)
        self._normalised.add(digest)
        return digest, reason
