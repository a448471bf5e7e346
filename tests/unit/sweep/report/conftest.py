"""One sweep for all tests of reports."""

import dataclasses
from pathlib import Path

import pytest

from loopcoder_train.sweep.report import report as reports
from loopcoder_train.sweep.report.report import Report, report_of_sweep
from tests.unit.sweep.report.sweeps import make_sweep


@pytest.fixture(scope="session")
def sweep(tmp_path_factory) -> Path:
    return make_sweep(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="session")
def report(sweep) -> Report:
    """`train` counts no sources, so that an audit finds nothing to compare: it is left out here."""
    read = reports.read_facts
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reports, "read_facts", lambda run_dir: dataclasses.replace(read(run_dir), audit=[]))
        return report_of_sweep(sweep)
