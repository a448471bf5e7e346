"""One number for every document of a build: the order in which duplicates are judged.

Documents are numbered source by source in the order of the configuration, inside a source task by task, inside a task
as they were read. So of two copies the one from the source that stands first is kept. Within a task documents lie in
the order of the sources too, hence its numbers are one range per source.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(slots=True)
class Numbering:
    """counts [tasks][sources]: how many documents a task read of each source, in the order of the configuration."""

    counts: Sequence[Sequence[int]]

    @property
    def total(self) -> int:
        """Documents of all tasks."""
        return int(np.sum(self.counts))

    def ranges(self, task: int) -> Iterator[tuple[int, int]]:
        """(first number, one past the last) for each source of a task, in the order of its documents."""
        table = np.asarray(self.counts, dtype=np.int64)
        before_source = np.concatenate([[0], np.cumsum(table.sum(axis=0))])
        before_task = table[:task].sum(axis=0)
        for source, count in enumerate(table[task].tolist()):
            first = int(before_source[source] + before_task[source])
            yield first, first + count

    def of_task(self, task: int) -> np.ndarray:
        """The numbers of a task's documents [N] int64."""
        return np.concatenate([np.arange(first, stop, dtype=np.int64) for first, stop in self.ranges(task)])

    def mark(self, task: int, numbers: np.ndarray, values: np.ndarray, marks: np.ndarray) -> None:
        """Write `values` [M] to the `marks` [N] of those documents of a task whose sorted numbers [M] are listed."""
        index = 0
        for first, stop in self.ranges(task):
            begin, end = np.searchsorted(numbers, [first, stop]).tolist()
            marks[numbers[begin:end] - first + index] = values[begin:end]
            index += stop - first
