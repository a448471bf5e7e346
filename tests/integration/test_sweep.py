"""A sweep by its command, real runs and all: they match, and the same command again finds nothing to do."""

import json
from pathlib import Path

import pytest

from tests.integration.conftest import Outcome, loopcoder

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def arguments(corpus, tmp_path_factory) -> list[str]:
    """Two arms, pretrained, evaluated and diagnosed, on the plain engine, whose processes start soonest.

    tests/faults/test_sweep.py has the study's engine, the tuning, and kills.
    """
    return [
        "sweep", "experiment=miniature", "sweep=miniature", "sweep.finetune=[]", f"data.corpus_dir={corpus}",
        "model.vocab_size=512", "data.max_repeats=1000", "training.num_steps=6", "guards.spike=skip",
        "engine=plain", "parallel.world_size=1", "training.precision=fp32",
        f"run_dir={tmp_path_factory.mktemp('sweep') / 'swept'}",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def swept(arguments) -> Outcome:
    return loopcoder(*arguments, timeout=500)


@pytest.fixture(scope="module")
def folder(arguments) -> Path:
    return Path(arguments[-1].removeprefix("run_dir="))


def test_arms_match_by_what_they_recorded(swept, folder):
    assert swept.code == 0, swept.stderr
    report = json.loads((folder / "report.json").read_text())
    (proof,) = report["proofs"]
    checks = {check["name"]: check for check in proof["match"]["checks"]}
    assert {check["status"] for check in checks.values()} == {"same", "swept"} and len(checks) == 10, checks
    assert [name for name, check in checks.items() if check["status"] == "swept"] == ["swept option"]
    assert "at step 6, audited" in checks["token stream"]["evidence"]
    assert "No verdict" in swept.stdout and "bigram baseline" in swept.stdout
    assert [arm["inference"].keys() for arm in report["arms"]] == [{"1": 0, "2": 0, "3": 0, "4": 0}.keys()] * 2


def test_it_says_what_may_unmatch_the_arms_and_how_it_gets_on(swept):
    assert "guards.spike=skip: an arm that finds a spike leaves out a batch" in swept.stderr
    assert "[1 of 2] num_loops=1: done in" in swept.stderr and "left for the other arms" in swept.stderr
    assert "has no gates; they are 0.5 everywhere" in swept.stderr


def test_the_same_command_again_starts_nothing(swept, arguments, folder):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.json*") if path.parent != folder}
    again = loopcoder(*arguments)
    assert again.code == 0 and "[1 of 2]" not in again.stderr, again.stderr
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*.json*") if path.parent != folder}


def test_runs_that_differ_in_more_get_no_verdict(swept, arguments, folder, tmp_path):
    """An arm is read beside a run of another seed, which began with another learning rate: both are told."""
    given = [text for text in arguments[1:-1] if not text.startswith("sweep")]
    given += ["model.num_loops=1", "seed=1", f"run_dir={tmp_path / 'other'}"]
    for options in (["optimizer.peak_lr=1e-4", "training.stop_after_step=3"], ["accept_config_changes=true"]):
        trained = loopcoder("pretrain", *given, *options)
        assert trained.code == 0, trained.stderr
    assert loopcoder("evaluate", str(tmp_path / "other")).code == 0
    page = tmp_path / "page.html"
    told = loopcoder("report", f"{folder}/num_loops=1/pretrain", str(tmp_path / "other"), f"html={page}")
    assert told.code == 0 and "No verdict: the runs are not matched (options: " in told.stdout, told
    assert "seed is 1, not 0" in told.stdout
    (proof,) = json.loads(page.with_suffix(".json").read_text())["proofs"]
    (options,) = (check for check in proof["match"]["checks"] if check["name"] == "options")
    assert any("changed on the way optimizer.peak_lr to 0.003 after step 3" in line for line in options["found"])
