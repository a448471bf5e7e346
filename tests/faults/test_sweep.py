"""The study in miniature (its engine, its two processes, its precision), killed at random points and given again, comes
to the numbers of one left alone."""

import json
import random
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tests.integration.conftest import command, environment, loopcoder

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3000)]
NOT_COMPARED = ("training_seconds",)  # clocks
KILLS = 6


@pytest.fixture(scope="module")
def arguments(corpus) -> list[str]:
    return [
        "sweep", "experiment=miniature", "sweep=miniature", f"data.corpus_dir={corpus}", "model.vocab_size=512",
        "data.max_repeats=1000", "training.num_steps=12",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(arguments, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sweep") / "undisturbed"
    outcome = loopcoder(*arguments, f"run_dir={folder}", timeout=1200)
    assert outcome.code == 0, outcome.stderr
    return folder


def final_numbers(folder: Path) -> dict:
    """report.json without clocks and without the folder's own name."""
    text = (folder / "report.json").read_text().replace(str(folder), "SWEEP")
    content = json.loads(text)
    for arm in content["arms"]:
        for key in NOT_COMPARED:
            del arm[key]
    for value in content["verdict"]["values"]:
        for key in NOT_COMPARED:
            del value[key]
    return content


def test_the_arms_match_and_every_stage_was_done(undisturbed):
    content = final_numbers(undisturbed)
    checks = [check for proof in content["proofs"] for check in proof["match"]["checks"]]
    assert {proof["title"] for proof in content["proofs"]} == {"pretrain", "finetune"}
    assert {check["status"] for check in checks if check["name"] != "swept option"} == {"same"}, checks
    assert [check["status"] for check in checks if check["name"] == "swept option"] == ["swept"] * 2
    assert len(checks) >= 18
    one, two = content["arms"]
    assert one["tokens"] == two["tokens"] and one["training_flops"] < two["training_flops"]
    assert one["tuned"] and two["diagnosis"]["num_loops"] == 2 and two["inference"].keys() == {"1", "2", "3", "4"}


def test_the_same_command_again_does_nothing(undisturbed, arguments):
    before = {path: path.stat().st_mtime_ns for path in undisturbed.rglob("metrics.jsonl")}
    outcome = loopcoder(*arguments, f"run_dir={undisturbed}")
    assert outcome.code == 0 and "[1 of 2]" not in outcome.stderr, outcome.stderr
    assert before == {path: path.stat().st_mtime_ns for path in undisturbed.rglob("metrics.jsonl")}


@pytest.mark.parametrize("everything", [True, False], ids=["all processes", "the sweep alone"])
def test_kill_and_the_same_command_again_come_to_the_same_numbers(undisturbed, arguments, tmp_path, everything):
    folder, chance = tmp_path / "killed", random.Random(f"sweep {everything}")
    kills = 0
    for _ in range(40):
        process = subprocess.Popen(
            command(*arguments, f"run_dir={folder}"), env=environment(), stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            wait = chance.uniform(2, 40) if kills < KILLS else 1500
            code = process.wait(timeout=wait)
            break
        except subprocess.TimeoutExpired:
            _kill(process.pid, everything)
            process.wait()
            kills += 1
    assert code == 0 and kills >= 3, (code, kills)
    assert final_numbers(folder) == final_numbers(undisturbed)


def _kill(pid: int, everything: bool) -> None:
    """The deepest first would give parents time to notice: the sweep goes first, as when a machine goes down."""
    children = psutil.Process(pid).children(recursive=True) if everything else []
    for process in [psutil.Process(pid), *children]:
        try:
            process.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
    time.sleep(0.1)


def test_a_failed_arm_costs_the_others_nothing(arguments, tmp_path):
    """`num_loops=1` finds a file where its folder should be."""
    folder = tmp_path / "sweep"
    (folder / "num_loops=1").mkdir(parents=True)
    (folder / "num_loops=1" / "pretrain").write_text("a file")
    outcome = loopcoder(*arguments, f"run_dir={folder}", "sweep.finetune=[]", "sweep.inference_loops=[]", timeout=600)
    assert outcome.code == 1 and "num_loops=1: pretrain failed with exit code 2" in outcome.stderr, outcome.stderr
    content = json.loads((folder / "report.json").read_text())
    assert [arm["label"] for arm in content["arms"]] == ["R = 2"] and content["failed"].keys() == {"R = 1"}
    assert content["verdict"]["best"] is None and "R = 1" in content["verdict"]["sentence"]
