"""The page in a real browser, if there is one: it fits, it is quiet, its charts have a size, and names do nothing."""

import dataclasses
import re

import pytest

from loopcoder_train.sweep.report.page import render
from tests.unit.data_pipeline.report import browser

pytestmark = pytest.mark.skipif(browser.CHROMIUM is None, reason="needs Chromium (apt-get install chromium)")
HOSTILE = "<img src=x onerror='window.taken=1'>\"><script>window.taken=1</script>"
LONG = "a-name-of-one-word-" * 12


@pytest.fixture(scope="module")
def chromium():
    with browser.started() as running:
        yield running


@pytest.fixture(scope="module")
def page(report, tmp_path_factory):
    """Long names, hostile names, arms of huge cost, a verdict that names a folder."""
    arms = [
        dataclasses.replace(arm, label=f"{arm.label} {text}", training_flops=10**24, tokens=18 * 10**12)
        for arm, text in zip(report.arms, ("", LONG, HOSTILE), strict=True)
    ]
    path = tmp_path_factory.mktemp("page") / "page.html"
    verdict = dataclasses.replace(report.verdict, sentence=f"No verdict: {LONG.replace('-', '/')} {HOSTILE}")
    changed = dataclasses.replace(report, title=LONG + HOSTILE, verdict=verdict, arms=arms, failed={LONG: HOSTILE})
    path.write_text(render(changed), encoding="utf-8")
    return path


@pytest.mark.parametrize(("scheme", "darker"), [("light", "ink"), ("dark", "paper")])
def test_each_scheme_has_its_paper_and_ink_that_can_be_read_on_it(chromium, page, scheme, darker):
    """Relative luminance and contrast of text, as WCAG counts them."""
    chromium.open(page, 1280, scheme)
    paper, *inks = (
        luminance(colour)
        for colour in chromium.evaluate(
            """[getComputedStyle(document.body).backgroundColor, ...['h1', 'p', 'td', '.plot text'].map((kind) => {
                 const style = getComputedStyle(document.querySelector(kind));
                 return kind === '.plot text' ? style.fill : style.color; })]"""
        )
    )
    for ink in inks:
        assert (ink < paper) is (darker == "ink")
        assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) >= 4.5


def luminance(colour: str) -> float:
    """0 to 1, of `rgb(r, g, b)`."""
    channels = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 1280])
def test_it_fits_and_is_quiet(chromium, page, width, scheme):
    chromium.open(page, width, scheme)
    assert chromium.complaints == []
    assert chromium.evaluate("document.documentElement.scrollWidth") <= width
    assert chromium.evaluate("typeof window.taken") == "undefined"
    clipped = chromium.evaluate(
        """[...document.querySelectorAll('td, th, dd, dt')].filter((cell) => cell.scrollWidth > cell.clientWidth + 1
           && cell.clientWidth).map((cell) => cell.textContent)"""
    )
    assert clipped == [], "text that runs into its neighbour"
    sizes = chromium.evaluate(
        "[...document.querySelectorAll('.plot')].map((plot) => plot.getBoundingClientRect().width)"
    )
    assert len(sizes) > 12 and min(sizes) > 200
    colours = chromium.evaluate(
        "[...document.querySelectorAll('.plot path')].map((path) => getComputedStyle(path).stroke)"
    )
    assert "none" not in colours and len(set(colours)) >= 3


def test_text_of_charts_stays_inside(chromium, page):
    chromium.open(page, 390)
    outside = chromium.evaluate(
        """[...document.querySelectorAll('.plot text')].filter((text) => {
             const own = text.getBoundingClientRect(), plot = text.closest('svg').getBoundingClientRect();
             return own.left < plot.left - 4 || own.right > plot.right + 4; }).map((text) => text.textContent)"""
    )
    assert outside == []


def test_headings_sort(chromium, page):
    chromium.open(page, 1280)
    chromium.evaluate("document.querySelectorAll('#table-arms thead button')[1].click()")
    losses = chromium.evaluate(
        "[...document.querySelectorAll('#table-arms tbody tr')].map((row) => Number(row.cells[1].dataset.value))"
    )
    assert losses == sorted(losses, reverse=True) and len(losses) == 3
