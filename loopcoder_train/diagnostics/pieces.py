"""How much is held at a time: whatever grows with tokens times keys, or tokens times vocabulary, comes in pieces.

One matrix of a piece has at most PIECE_ELEMENTS numbers (64 MiB in fp32), but always a whole row.
"""

from collections.abc import Iterator

PIECE_ELEMENTS = 1 << 24


def piece_bounds(rows: int, row_elements: int, piece_elements: int) -> Iterator[tuple[int, int]]:
    """[first, stop) of consecutive pieces of `rows` rows with `row_elements` numbers each."""
    size = max(1, piece_elements // row_elements)
    for first in range(0, rows, size):
        yield first, min(first + size, rows)
