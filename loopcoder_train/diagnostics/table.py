"""The table of a diagnosis, for a terminal: one row per number, one column per loop."""

from itertools import groupby

from loopcoder_train.diagnostics.catalogue import CATALOGUE, Entry
from loopcoder_train.diagnostics.confidence import Estimate
from loopcoder_train.diagnostics.diagnosis import Diagnosis
from loopcoder_train.evaluation.report import align


def format_diagnosis(diagnosis: Diagnosis) -> str:
    """Mean and half the 95% interval per loop; rows that no loop has are left out."""
    loops = range(1, diagnosis.num_loops + 1)
    header = ["mean -+ 95% interval", *[f"loop {loop}" for loop in loops]]
    rows: list[list[str] | None] = []
    for _, entries in groupby(CATALOGUE, key=lambda entry: entry.group):
        of_group = [_row(entry, diagnosis) for entry in entries]
        rows += [None, *[row for row in of_group if any(row[1:])]] if any(any(row[1:]) for row in of_group) else []
    return align(header, rows[1:])


def _row(entry: Entry, diagnosis: Diagnosis) -> list[str]:
    series = diagnosis.series(entry.name)
    loops = range(1, diagnosis.num_loops + 1)
    return [entry.title, *[_cell(series[loop], entry.decimals) if loop in series else "" for loop in loops]]


def _cell(value: Estimate, decimals: int) -> str:
    spread = "" if value.half_width is None else f" -+{value.half_width:.{decimals}f}"
    return f"{value.mean:.{decimals}f}{spread}"
