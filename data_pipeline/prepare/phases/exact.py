"""Phase 2: a task finds the duplicates in its range of hashes.

The journey: the slice of every task's content hashes that lies in the range -> sorted by normalised hash and document
number -> of equal hashes the lowest number is kept, the others are dropped: `identical content` when an earlier one
has the very same bytes, else they differ in case, numbers or white space only (dedup.py).
"""

import numpy as np

from data_pipeline.ledger import Ledger
from data_pipeline.prepare.job import Job
from data_pipeline.prepare.numbering import Numbering
from data_pipeline.prepare.phases.read import CONTENT_HASHES
from data_pipeline.prepare.sources import nothing_kept


def run(job: Job, task: int) -> None:
    """Judge the documents whose normalised hash lies in part `task` of `config.tasks` of all hashes."""
    config, workspace, numbering = job.config, job.workspace, job.numbering()
    _refuse_empty_sources(job, numbering)
    rows, numbers = [], []
    for part in range(config.tasks):
        hashes = workspace.load_array("documents", part, "content")
        chosen = np.array(hashes[hash_range(hashes["high"], task, config.tasks)])
        rows.append(chosen)
        numbers.append(numbering.of_task(part)[chosen["index"]])
    dropped, identical = duplicates(np.concatenate(rows), np.concatenate(numbers))
    workspace.save_array("exact", task, "dropped", dropped)
    workspace.save_array("exact", task, "identical", identical)


def _refuse_empty_sources(job: Job, numbering: Numbering) -> None:
    """DataError for a source of which no task has kept a document, unless a cap left it out."""
    tasks = range(job.config.tasks)
    unread = {name for task in tasks for name in job.workspace.load_json("documents", task)["unread"]}
    for source, count in zip(job.config.sources, np.sum(numbering.counts, axis=0).tolist(), strict=True):
        if not count and source.name not in unread:
            ledger = Ledger()
            for part in job.workspace.ledgers("read"):
                ledger.merge(part)
            raise nothing_kept(source, ledger)


def hash_range(hashes: np.ndarray, part: int, parts: int) -> slice:
    """The slice of sorted 64-bit hashes that belongs to `part` of `parts` equal ranges."""
    bounds = [(edge << 64) // parts for edge in (part, part + 1)]
    first = int(np.searchsorted(hashes, np.uint64(bounds[0])))
    # The end of the last range is no 64-bit number.
    stop = len(hashes) if part + 1 == parts else int(np.searchsorted(hashes, np.uint64(bounds[1])))
    return slice(first, stop)


def duplicates(rows: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """rows [N] of CONTENT_HASHES, numbers [N] -> (dropped numbers [M] int64, sorted; whether identical [M] bool)."""
    assert rows.dtype == CONTENT_HASHES, rows.dtype
    same_normal = _has_earlier_equal(rows, numbers, ("high", "low"))
    same_content = _has_earlier_equal(rows, numbers, ("high", "low", "exact_high", "exact_low"))
    order = np.argsort(numbers)
    dropped = order[same_normal[order]]
    return numbers[dropped], same_content[dropped]


def _has_earlier_equal(rows: np.ndarray, numbers: np.ndarray, columns: tuple[str, ...]) -> np.ndarray:
    """Whether a row [N] with a lower number has the same values in `columns`."""
    order = np.lexsort((numbers, *(rows[column] for column in columns)))
    earlier = np.ones(len(rows), dtype=bool)
    earlier[:1] = False
    for column in columns:
        values = rows[column][order]
        earlier[1:] &= values[1:] == values[:-1]
    result = np.empty(len(rows), dtype=bool)
    result[order] = earlier
    return result
