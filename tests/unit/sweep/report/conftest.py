"""One sweep for all tests of reports."""

from pathlib import Path

import pytest

from loopcoder_train.sweep.report.report import Report, report_of_sweep
from tests.unit.sweep.report.sweeps import make_sweep


@pytest.fixture(scope="session")
def sweep(tmp_path_factory) -> Path:
    return make_sweep(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="session")
def report(sweep) -> Report:
    return report_of_sweep(sweep)
