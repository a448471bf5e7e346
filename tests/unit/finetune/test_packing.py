"""Every conversation whole and once, in the row that best fit says."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.errors import DataError
from loopcoder_train.finetune.packing import pack

CAPACITY = 20


def naive(lengths: list[int], capacity: int) -> list[int]:
    """Free tokens of the rows of best-fit decreasing, by looking at every row."""
    free: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [space for space in free if space >= length]
        if fitting:
            free.remove(min(fitting))
            free.append(min(fitting) - length)
        else:
            free.append(capacity - length)
    return sorted(free)


@given(st.lists(st.integers(1, CAPACITY), max_size=60))
def test_best_fit(lengths):
    rows = pack(np.array(lengths, dtype=np.int64), CAPACITY)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert sorted(CAPACITY - sum(lengths[index] for index in row) for row in rows) == naive(lengths, CAPACITY)
    assert rows == pack(np.array(lengths, dtype=np.int64), CAPACITY)


def test_what_does_not_fit_is_an_error():
    with pytest.raises(DataError, match="21 tokens do not fit into a row of 20"):
        pack(np.array([3, 21]), CAPACITY)
