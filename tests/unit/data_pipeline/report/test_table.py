"""Numbers as text, the tables of the terminal, and the files that a report writes."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.errors import DataError
from data_pipeline.report import units
from data_pipeline.report.funnel import make_report
from data_pipeline.report.table import describe, summary
from data_pipeline.report.write import report_of_build, write_json, write_page
from tests.unit.data_pipeline.report.corpora import EVERY_STAGE, FATES, Fate, save_corpus


@pytest.mark.parametrize(
    ("number", "text", "size"),
    [
        (0, "0", "0 B"), (7, "7", "7 B"), (-7, "-7", "-7 B"),
        (-1234, "-1.23k", "-1.23 kB"), (999, "999", "999 B"), (1000, "1.00k", "1.00 kB"),
        (17_148, "17.1k", "17.1 kB"), (999_499, "999k", "999 kB"), (999_500, "1.00M", "1.00 MB"),
        (32_118_019, "32.1M", "32.1 MB"), (18 * 10**12, "18.0T", "18.0 TB"), (72 * 10**12, "72.0T", "72.0 TB"),
        (5 * 10**21, "5,000,000Q", "5,000 EB"),
    ],
)  # fmt: skip
def test_three_digits(number, text, size):
    assert (units.scaled(number), units.size(number)) == (text, size)


@given(st.integers(1, 2**63))
def test_scaled_is_within_half_a_percent(number):
    text = units.scaled(number)
    factor = {"k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12, "Q": 1e15}.get(text[-1], 1)
    assert abs(float(text.rstrip("kMBTQ").replace(",", "")) * factor - number) <= 0.005 * number


def test_percent_never_rounds_to_nothing_or_all():
    shares = [(0, 5), (1, 10**6), (10**6 - 1, 10**6), (1, 3), (5, 5), (0, 0)]
    assert [units.percent(*share) for share in shares] == ["0.0%", "<0.1%", ">99.9%", "33.3%", "100.0%", "-"]


def test_estimates_have_a_tilde_and_counts_every_digit():
    assert [units.tokens(3_944_238, about) for about in (False, True)] == ["3,944,238", "~3.94M"]
    assert (units.short(999_999), units.short(1_000_000)) == ("999,999", "1.00M")


@pytest.fixture
def corpus(tmp_path):
    return save_corpus(tmp_path / "corpus", FATES, notes=("mine: stopped early",), build_config=EVERY_STAGE)


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def test_summary_has_a_row_for_each_side(corpus):
    lines = summary(make_report(corpus))
    assert lines[0] == (
        "16 of 24 documents were kept, 11.5 kB of 17.0 kB (67.6%): 2,830 tokens to train on (text 1,500, code 1,330) "
        "and 100 held out. Every document that was read is accounted for."
    )
    headings, text, code, everything = map(_cells, lines[2:])
    assert headings[:3] == ["side", "read", "size"]
    assert text == ["text", "5", "7.00 kB", "1", "0", "0", "0", "0", "0", "4", "6.00 kB", "1,500", "0"]
    assert code == ["code", "19", "10.0 kB", "0", "2", "3", "1", "1", "1", "12", "5.50 kB", "1,330", "100"]
    assert everything[1] == "24"


def test_one_side_is_its_own_total(tmp_path):
    fates = [Fate(source="a", language="C", stage="train", bytes=100, tokens=50)]
    assert [line.split()[0] for line in summary(make_report(save_corpus(tmp_path, fates)))[2:]] == ["side", "code"]


def test_describe_shows_funnel_languages_sources_reasons_and_notes(corpus):
    text = describe(make_report(corpus))
    rows = {tuple(_cells(line)[:2]): _cells(line) for line in text.splitlines() if line.strip()}
    assert rows["read", "24"][2:4] == ["17.0 kB", "~4.42k"]
    assert rows["after filters", "21"][-3:] == ["2", "2.49 kB", "~629"]
    assert rows["after redaction", "16"] == ["after redaction", "16", "11.5 kB", "2,930", "1 changed", "20 B", "~5"]
    assert rows["fill-in-the-middle, in training", "8"] == ["fill-in-the-middle, in training", "8", "24"]
    assert rows["fill-in-the-middle", "psm"] == ["fill-in-the-middle", "psm", "mine", "8", "0 B"]
    assert rows["training", "14"] == ["training", "14", "11.1 kB", "2,830"]
    assert rows["Python", "code"][-4:] == ["1,130", "85.0%", "100", "3.98"]
    assert rows["Lua", "code"][-1] == "-"
    assert rows["wiki", "text + code"][-3] == "-", "a source of both sides has no share of one"
    assert rows["filters", "generated file"] == ["filters", "generated file", "mine, wiki", "2", "2.49 kB"]
    assert text.splitlines()[-1] == "note: mine: stopped early"
    assert "(off)" not in text


def test_describe_says_which_stages_the_build_did_not_have(tmp_path):
    fates = [Fate(source="a", language="C", stage="train", bytes=100, tokens=50)]
    text = describe(make_report(save_corpus(tmp_path, fates, build_config=EVERY_STAGE | {"evaluation_sets": []})))
    assert [line.split("  ")[0] for line in text.splitlines() if "(off)" in line] == ["after contamination"]


def test_planned_shares_are_a_table_of_their_own(corpus):
    report = make_report(corpus)
    assert "% planned" not in describe(report)
    report.language_manifest = "mine"
    report.mixture[1].planned = 0.5
    lines = describe(report).splitlines()
    assert any(line.endswith("% planned (mine)") for line in lines)
    assert any(_cells(line) == ["python", "code", "1,130", "85.0", "50.0"] for line in lines)


def test_a_build_ends_with_the_summary_and_the_page(corpus):
    lines = report_of_build(corpus.directory)
    page = corpus.directory / "report.html"
    assert lines[:-2] == summary(make_report(corpus))
    assert lines[-1].startswith(f"report: {page} ") and page.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_json_file(corpus, tmp_path):
    content = json.loads(write_json(make_report(corpus), tmp_path / "r.json").read_bytes())
    assert (content["format"], content["version"]) == ("loopcoder-corpus-report", 1)
    assert content["total"]["read"]["documents"] == 24 and content["total"]["lost"]["filtered"]["documents"] == 2
    assert content["notes"] == ["mine: stopped early"]


@pytest.mark.parametrize("write", [write_page, write_json])
def test_what_cannot_be_written_is_one_line(corpus, tmp_path, write):
    report, option = make_report(corpus), "html" if write is write_page else "json"
    for path, why in ((tmp_path, "is a folder"), (Path("/proc/none/x"), "cannot be written")):
        with pytest.raises(DataError, match=f"{option}={path}: {why}") as caught:
            write(report, path)
        assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus"]
