"""Conversations -> rows: whole, best fit, longest first. A pure function of their lengths."""

import numpy as np

from data_pipeline.errors import DataError


def pack(lengths: np.ndarray, capacity: int) -> list[list[int]]:
    """Rows of indices whose lengths add up to at most `capacity` each; every index is in one row.

    Best-fit decreasing: from the longest on (the earlier one among equals), each goes into the row where it leaves
    least room (among equals the one that last got that much), or into a new row where it fits none. Room is found in
    a bit mask of the free spaces that some row has, so n conversations take O(n capacity / 64).

    lengths: int64 [n], each 1..capacity.
    """
    rows: list[list[int]] = []
    with_room: dict[int, list[int]] = {}  # free tokens -> rows, the last one is taken first
    spaces = 0  # bit s: some row has s free tokens
    for index in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[index])
        if not 1 <= length <= capacity:
            raise DataError(f"conversation {index}: {length} tokens do not fit into a row of {capacity}")
        fitting = spaces >> length
        if fitting:
            space = length + (fitting & -fitting).bit_length() - 1
            row = with_room[space].pop()
            if not with_room[space]:
                spaces &= ~(1 << space)
            rows[row].append(index)
        else:
            space, row = capacity, len(rows)
            rows.append([index])
        left = space - length
        with_room.setdefault(left, []).append(row)
        spaces |= 1 << left
    return rows
