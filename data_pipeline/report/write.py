"""Where a report goes: a page, a JSON file, and the lines that end a build."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_pipeline.errors import DataError
from data_pipeline.manifest import Corpus, write_durably
from data_pipeline.report.flows import Flow
from data_pipeline.report.funnel import Report, make_report
from data_pipeline.report.page import render
from data_pipeline.report.table import summary

PAGE_FILE = "report.html"
FORMAT, VERSION = "loopcoder-corpus-report", 1


def report_of_build(directory: Path) -> list[str]:
    """Write the page of a finished corpus beside its manifest. Returns the lines to end the build with."""
    report = make_report(Corpus.open(directory))
    page = write_page(report, directory / PAGE_FILE)
    return [*summary(report), "", f"report: {page} (loopcoder data report {directory} prints it)"]


def write_page(report: Report, path: Path) -> Path:
    """Write the page. Returns where. Raises DataError when it cannot be written."""
    return _write("html", path, render(report))


def write_json(report: Report, path: Path) -> Path:
    """Write the numbers. Returns where. Raises DataError when they cannot be written."""
    return _write("json", path, json.dumps(numbers(report), indent=1, ensure_ascii=False) + "\n")


def numbers(report: Report) -> dict[str, Any]:
    """The report as JSON values. Tokens of `train`, `heldout` and `kept` are counted, all others estimated."""
    content = asdict(report) | {
        "total": _flow(report.total),
        "sides": [_flow(flow) for flow in report.sides],
        "languages": [_flow(flow) for flow in report.languages],
        "sources": [_flow(flow) for flow in report.sources],
    }
    return {"format": FORMAT, "version": VERSION, **content}


def _flow(flow: Flow) -> dict[str, Any]:
    return asdict(flow) | {"kept": asdict(flow.kept), "bytes_per_token": flow.bytes_per_token}


def _write(option: str, path: Path, content: str) -> Path:
    if path.is_dir():
        raise DataError(f"{option}={path}: is a folder; name a file")
    try:
        write_durably(path, content)
    except OSError as error:
        raise DataError(f"{option}={path}: cannot be written ({error.strerror}); name another file") from error
    return path
