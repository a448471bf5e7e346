"""`loopcoder data report`: tables on the terminal, a page, numbers."""

import json

import fsspec
import pytest

from tests.unit.data_pipeline.report.corpora import FATES, save_corpus


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return save_corpus(tmp_path / "corpora" / "default", FATES).directory


def test_the_page_lies_in_the_corpus_unless_told_otherwise(corpus, loopcoder):
    code, out, error = loopcoder("data", "report")
    assert (code, error) == (0, "")
    assert "2,830 tokens to train on" in out and out.endswith("page: corpora/default/report.html\n")
    assert (corpus / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_files_elsewhere(corpus, tmp_path, loopcoder):
    code, out, error = loopcoder("data", "report", str(corpus), "html=a,b=c.html", "json=n.json")
    assert (code, error) == (0, "")
    assert out.endswith("page: a,b=c.html\nnumbers: n.json\n") and (tmp_path / "a,b=c.html").is_file()
    assert json.loads((tmp_path / "n.json").read_bytes())["total"]["train"]["tokens"] == 2830
    assert not (corpus / "report.html").exists()


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--json", "json=True: must name a file"),
        ("html=.", "html=.: is a folder; name a file"),
        ("corpus_dir=", "corpus_dir=''"),
        ("corpus_dir=nowhere", "nowhere: no corpus there"),
        ("htlm=x", "did you mean html?"),
    ],
)
def test_errors_are_one_line(corpus, loopcoder, argument, message):
    code, _, error = loopcoder("data", "report", argument)
    assert code == 2 and message in error and error.count("\n") == 1


def test_a_corpus_behind_a_url_needs_a_place_for_the_page(corpus, tmp_path, loopcoder):
    remote = f"memory://{tmp_path.name}"
    fsspec.filesystem("memory").put(str(corpus), f"/{tmp_path.name}", recursive=True)
    code, _, error = loopcoder("data", "report", remote, "cache_dir=cache")
    assert code == 2 and "html: is not set" in error and error.count("\n") == 1
    code, out, error = loopcoder("data", "report", remote, "cache_dir=cache", "html=r.html")
    assert (code, error) == (0, "") and out.startswith(f"corpus {remote} ")
    assert f"<h1>{remote}</h1>" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_help(loopcoder):
    code, out, _ = loopcoder("data", "report", "--help")
    assert code == 0 and "html=FILE" in out and "json=FILE" in out
    assert "data report" in loopcoder("--help")[1]
