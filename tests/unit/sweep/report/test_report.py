"""What the page says is what report.json says, and that is what the runs' own files say."""

import dataclasses
import json
import re
import shutil
from html.parser import HTMLParser

import pytest

from loopcoder_train.cli.main import main
from loopcoder_train.config import UserError
from loopcoder_train.sweep.arms import Arm, Sweep
from loopcoder_train.sweep.report.page import render
from loopcoder_train.sweep.report.report import numbers, report_of_runs, report_of_sweep, write_json, write_page
from loopcoder_train.sweep.verdict import judge


class Tables(HTMLParser):
    """table id -> rows of (row's name, exact values)."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: dict[str, list[list[str]]] = {}
        self.text, self._table, self._cell = "", None, False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if tag == "table":
            self._table = values.get("id", "")
            self.rows.setdefault(self._table, [])
        elif tag == "tr" and self._table is not None:
            self.rows[self._table].append([])
        elif tag == "td" and "data-value" in values and self._table is not None:
            self.rows[self._table][-1].append(values["data-value"])

    def handle_endtag(self, tag):
        if tag == "table":
            self._table = None

    def handle_data(self, data):
        self.text += data

    def values(self, table: str) -> list[list[float | None]]:
        return [[float(v) if v else None for v in row] for row in self.rows[table] if row]


def test_the_numbers_are_those_of_the_runs(sweep, report):
    content = json.loads(json.dumps(numbers(report), default=str))
    assert [arm["label"] for arm in content["arms"]] == ["R = 1", "R = 2", "R = 1, 2 x layers"]
    for arm in content["arms"]:
        run_dir = sweep / arm["name"] / "pretrain"
        evaluation = json.loads((run_dir / "evaluation.json").read_text())
        assert arm["loss"]["mean"] == pytest.approx(evaluation["overall"]["loop_losses"][-1], rel=1e-12)
        assert arm["loss"]["samples"] > 2 and arm["loss"]["half_width"] > 0
        assert arm["by_language"] == evaluation["by_language"] and arm["bigram_loss"] == evaluation["bigram_loss"]
        assert arm["diagnosis"] == json.loads((run_dir / "diagnostics.json").read_text())
        evaluations = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
        curve = [(e["tokens"], e["loss"]) for e in evaluations if e["kind"] == "evaluation"]
        assert [(point["tokens"], point["loss"]) for point in arm["curve"]] == curve
    four = json.loads((sweep / "num_loops=2" / "pretrain" / "evaluation_loops4.json").read_text())
    assert content["arms"][1]["inference"] == {
        str(loops): loss for loops, loss in enumerate(four["overall"]["loop_losses"], start=1)
    }
    assert content["arms"][0]["inference"].keys() == {"1"}


def test_the_page_says_what_the_file_says(report, tmp_path):
    content = json.loads(write_json(report, tmp_path / "report.json").read_text())
    page = Tables(write_page(report, tmp_path / "report.html").read_text())
    assert content["verdict"]["sentence"] in page.text
    shown = page.values("table-arms")
    keys = ("bits_per_byte", "tuned", "tokens", "training_flops", "training_seconds", "parameters", "kv_cache_bytes")
    for row, arm in zip(shown, content["arms"], strict=True):
        assert row == [arm["loss"]["mean"], arm["loss"]["half_width"], *(arm[key] for key in keys)]
    for row, value in zip(page.values("table-values"), content["verdict"]["values"], strict=True):
        difference = value["difference"] or {"mean": None, "half_width": None}
        assert row == [value["loss"]["mean"], difference["mean"], difference["half_width"]]
    for row, arm in zip(page.values("table-inference"), content["arms"], strict=True):
        assert row == [arm["inference"].get(str(loops)) for loops in range(1, 5)]
    languages = content["arms"][0]["by_language"]
    assert len(page.values("table-languages")) == len(languages)
    for tokens, *losses in page.values("table-languages"):
        assert any(
            (tokens, losses[0]) == (entry["supervised_tokens"], entry["loop_losses"][-1])
            for entry in languages.values()
        )
    ours = content["arms"][1]["diagnosis"]["loops"]["2"]["step_size"]["mean"]
    assert page.values("table-paper")[0] == [846.0, ours]


def test_the_same_report_gives_the_same_page(report):
    assert render(report) == render(report)


def test_references_are_outside_of_the_verdict(report):
    assert [value.label for value in report.verdict.values] == ["R = 1", "R = 2"]
    assert {len(row) for row in Tables(render(report)).values("table-languages")} == {3}, "tokens and two values"
    assert report.matched and all("layers" not in check.evidence for check in report.proofs[0].match.checks)


def test_languages_keep_their_columns_without_a_verdict(report):
    bare = dataclasses.replace(report, verdict=dataclasses.replace(report.verdict, values=[], best=None))
    table = re.search(r'<table class="sortable" id="table-languages">.*?</table>', render(bare), re.DOTALL)[0]
    head, *rows = table.split("<tr>")[1:]
    assert {len(re.findall("<t[hd]", text)) for text in (head, *rows)} == {4}, "language, tokens and two values"


def test_several_seeds_are_told_apart_and_intervals_are_called_what_they_are(report):
    one, two, deep = report.arms
    arms = [one, two, deep, *(dataclasses.replace(arm, name=arm.name + "s1", seed=1) for arm in (one, two))]
    verdict = judge([arm for arm in arms if arm.reference is None], [], [])
    text = Tables(render(dataclasses.replace(report, arms=arms, verdict=verdict))).text
    assert "R = 2, seed 1" in text and "R = 2, seed 0" in text
    assert "those of single arms over documents, those of values below over seeds" in text


def test_the_page_needs_nothing_else(report):
    text = render(report)
    assert not re.search(r"""(src|href)=["'](?!data:,)""", text) and "http" not in text.replace("http-equiv", "")


def test_an_arm_that_did_not_finish_is_named(sweep, tmp_path):
    plan = Sweep.read(sweep)
    more = Arm(name="num_loops=3", label="R = 3", value=3, seed=0, reference=None, changes={})
    (tmp_path / "s").mkdir()
    for arm in plan.arms:
        (tmp_path / "s" / arm.name).symlink_to(sweep / arm.name)
    Sweep(axis=plan.axis, arms=[*plan.arms, more], tuned=False).write(tmp_path / "s")
    report = report_of_sweep(tmp_path / "s")
    assert report.failed.keys() == {"R = 3"} and "num_loops=3" in report.failed["R = 3"]
    assert report.verdict.best is None and "R = 3" in render(report)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("evaluation.json", '{"step": 6', "is damaged"),
        ("diagnostics.json", '{"step": 3}', "is of step 3, the run stands at 6; run `loopcoder diagnose"),
        ("metrics.jsonl", None, "cannot be read"),
        ("conversations/plan.json", "{}", "no plan that this program made"),
    ],
)
def test_a_damaged_file_costs_its_arm_only(sweep, tmp_path, name, content, said):
    folder = tmp_path / "s"
    shutil.copytree(sweep, folder)
    path = folder / "num_loops=2" / "pretrain" / name
    path.parent.mkdir(exist_ok=True)
    path.unlink() if content is None else path.write_text(content)
    report = report_of_sweep(folder)
    assert report.failed.keys() == {"R = 2"} and said in report.failed["R = 2"] and "\n" not in report.failed["R = 2"]


def test_loops_at_inference_are_of_the_same_tokens(sweep, tmp_path):
    folder = tmp_path / "s"
    shutil.copytree(sweep, folder)
    path = folder / "num_loops=2" / "pretrain" / "evaluation_loops4.json"
    content = json.loads(path.read_text())
    content["overall"]["supervised_tokens"] += 1
    path.write_text(json.dumps(content))
    assert report_of_sweep(folder).arms[1].inference.keys() == {1, 2}


def test_any_runs_are_compared(sweep):
    one, two = sweep / "num_loops=1" / "pretrain", sweep / "num_loops=2" / "pretrain"
    found = report_of_runs([one, two])
    assert found.axis == "model.num_loops" and [arm.value for arm in found.arms] == [1, 2]
    deep = sweep / "reference-depth" / "pretrain"
    found = report_of_runs([two, deep])
    assert found.axis is None and not found.matched
    assert "options" in found.verdict.sentence and "model.num_l" in found.verdict.sentence
    assert "not matched" in render(found)


def test_the_command_writes_both_files(sweep, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(sweep / "num_loops=1" / "pretrain"), "html=p,=q.html"]) == 0
    assert "No verdict" in capsys.readouterr().out and (tmp_path / "p,=q.html").exists()
    assert json.loads((tmp_path / "p,=q.json").read_text())["format"] == "loopcoder-sweep-report"


def test_flags_keep_their_values(sweep, capsys):
    assert main(["report", str(sweep), "--cfg", "job"]) == 0
    assert f"- {sweep}\n" in capsys.readouterr().out


def test_what_is_missing_is_said(sweep, tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "run.yaml is missing" in capsys.readouterr().err
    assert main(["report", str(sweep), str(sweep / "num_loops=1" / "pretrain")]) == 2
    assert "mixes" in capsys.readouterr().err
    with pytest.raises(UserError, match="no arm of the sweep has finished"):
        Sweep(axis="seed", arms=Sweep.read(sweep).arms, tuned=False).write(tmp_path)
        report_of_sweep(tmp_path)
