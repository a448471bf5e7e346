"""The page in a real browser, if there is one: it fits, it sorts, it is quiet, and no name on it does anything."""

import pytest

from data_pipeline.report.funnel import make_report
from data_pipeline.report.page import render
from tests.unit.data_pipeline.report import browser
from tests.unit.data_pipeline.report.corpora import EVERY_STAGE, FATES, Fate, save_corpus
from tests.unit.data_pipeline.report.test_page import hostile_report

pytestmark = pytest.mark.skipif(browser.CHROMIUM is None, reason="needs Chromium (apt-get install chromium)")
LONG = "a-name-of-one-word-" * 12


@pytest.fixture(scope="module")
def chromium():
    with browser.started() as running:
        yield running


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Numbers of 18T tokens, names without an end, more than ten languages."""
    folder = tmp_path_factory.mktemp("page")
    fates = [
        Fate(
            source=fate.source, language=fate.language, stage=fate.stage, bytes=fate.bytes * 10**10,
            tokens=fate.tokens * 10**10, reason=fate.reason, documents=fate.documents * 10**9,
        )
        for fate in FATES
    ]  # fmt: skip
    for number, language in enumerate(("Ada", "Awk", "Dart", "Elm", "Go", "Java", "Julia", "Perl", "R", "Rust", "Zig")):
        fates.append(Fate(source=LONG, language=language, stage="train", bytes=10**number, tokens=10**number))
        fates.append(Fate(source=LONG, language=language, stage="filtered", bytes=10, reason=f"{LONG}{number}"))
    report = make_report(save_corpus(folder / LONG, fates, notes=(LONG,), build_config=EVERY_STAGE))
    path = folder / "page.html"
    path.write_text(render(report), encoding="utf-8")
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_it_fits_and_is_quiet(chromium, page, width, scheme):
    chromium.open(page, width, scheme)
    assert chromium.complaints == []
    assert chromium.evaluate("document.documentElement.scrollWidth") <= width
    # With everything folded out, too.
    chromium.evaluate("document.querySelector('details').open = true")
    assert chromium.evaluate("document.documentElement.scrollWidth") <= width
    clipped = chromium.evaluate(
        """[...document.querySelectorAll('td, th, dd, dt')].filter((cell) => cell.scrollWidth > cell.clientWidth + 1
           && cell.clientWidth && getComputedStyle(cell).display !== 'none').map((cell) => cell.textContent)"""
    )
    assert clipped == [], "text that runs into its neighbour"
    assert chromium.evaluate("document.querySelectorAll('.bar rect').length") > 20
    assert chromium.evaluate("document.querySelector('.bar').getBoundingClientRect().width") > 30


def test_both_schemes_have_colours_of_their_own(chromium, page):
    grounds = []
    for scheme in ("light", "dark"):
        chromium.open(page, 1280, scheme)
        grounds.append(chromium.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(set(grounds)) == 2


def _column(chromium, table: int, column: int) -> list[str]:
    return chromium.evaluate(
        f"[...document.querySelectorAll('table.sortable')[{table}].tBodies[0].rows]"
        f".map((row) => row.cells[{column}].dataset.value ?? row.cells[{column}].textContent.trim())"
    )


def _click(chromium, table: int, column: int) -> str:
    heading = f"document.querySelectorAll('table.sortable')[{table}].tHead.rows[0].cells[{column}]"
    chromium.evaluate(f"{heading}.querySelector('button').click()")
    return chromium.evaluate(f"{heading}.getAttribute('aria-sort')")


def test_headings_sort(chromium, page):
    chromium.open(page, 1280)
    sizes = list(map(int, _column(chromium, 0, 3)))
    assert _click(chromium, 0, 3) == "descending"
    assert list(map(int, _column(chromium, 0, 3))) == sorted(sizes, reverse=True) != sizes
    assert _click(chromium, 0, 3) == "ascending"
    assert list(map(int, _column(chromium, 0, 3))) == sorted(sizes)
    assert _click(chromium, 0, 0) == "ascending"
    names = _column(chromium, 0, 0)
    assert names == sorted(names, key=str.lower) and len(names) == 15
    assert (
        chromium.evaluate("document.querySelectorAll('table.sortable')[0].querySelectorAll('[aria-sort]').length") == 1
    )
    assert chromium.evaluate("document.querySelectorAll('table.sortable')[0].tFoot.rows.length") == 2, "totals stay"


def test_hostile_names_do_nothing(chromium, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(render(hostile_report(tmp_path)), encoding="utf-8")
    chromium.open(path, 390)
    assert chromium.complaints == []
    assert chromium.evaluate("typeof window.taken") == "undefined"
    assert chromium.evaluate("document.documentElement.scrollWidth") <= 390


def test_an_unescaped_script_would_not_run_either(chromium, page, tmp_path):
    path = tmp_path / "page.html"
    text = page.read_text(encoding="utf-8")
    path.write_text(text.replace("</h1>", "</h1><script>window.taken=1</script>"), encoding="utf-8")
    chromium.open(path, 390)
    assert chromium.evaluate("typeof window.taken") == "undefined"
    assert any("Content Security Policy" in complaint for complaint in chromium.complaints)
