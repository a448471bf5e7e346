"""The page as HTML: whole in itself, escaped, readable for screen readers, with enough contrast in both schemes."""

import re
from html.parser import HTMLParser

import pytest

from data_pipeline.report.flows import LOSSES, Amount, Flow
from data_pipeline.report.funnel import make_report
from data_pipeline.report.html import content_hash
from data_pipeline.report.page import BAR_STAGES, funnel_bar, language_bar, render
from tests.unit.data_pipeline.report.corpora import EVERY_STAGE, FATES, Fate, save_corpus

HOSTILE = "<script>window.taken=1</script>\"'><img src=x onerror=window.taken=1>&amp;{{ 7*7 }}"
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """Elements with their attributes and text; checks that tags are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag, tag

    def handle_data(self, data):
        if self._open:
            self.texts.setdefault(self._open[-1], []).append(data)

    def named(self, *tags: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag in tags]

    def text(self, tag: str) -> str:
        return "".join(self.texts.get(tag, []))


def hostile_report(tmp_path):
    fates = [
        *FATES,
        Fate(source=HOSTILE, language=HOSTILE, stage="train", bytes=50, tokens=20),
        Fate(source=HOSTILE, language=HOSTILE, stage="filtered", bytes=50, reason=HOSTILE),
        Fate(source=HOSTILE, language="", stage="skipped", bytes=50, reason=HOSTILE),
    ]
    report = make_report(save_corpus(tmp_path / "h", fates, notes=(HOSTILE,), build_config=EVERY_STAGE))
    report.directory = report.language_manifest = HOSTILE
    report.mixture[0].planned = 0.5
    return report


@pytest.fixture
def report(tmp_path):
    return make_report(save_corpus(tmp_path / "corpus", FATES, notes=("a note",), build_config=EVERY_STAGE))


def test_the_page_needs_nothing_else(report):
    text = render(report)
    page = Page(text)
    assert [attributes["href"] for attributes in page.named("link", "a")] == ["data:,"]
    assert not page.named("img", "iframe", "object", "embed", "base", "form")
    assert all("src" not in attributes for _, attributes in page.elements)
    assert "url(" not in text and "@import" not in text and "http:" not in text and "https:" not in text


def test_only_its_own_script_may_run(report):
    page = Page(render(report))
    policy = next(a["content"] for a in page.named("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert re.search(r"script-src ([^;]*)", policy)[1] == f"'{content_hash(page.text('script'))}'"
    assert len(page.named("script")) == 1
    assert not any(name.startswith("on") or name == "style" for _, attributes in page.elements for name in attributes)


def test_hostile_names_are_text(tmp_path):
    report = hostile_report(tmp_path)
    page = Page(render(report))
    clean = Page(render(make_report(save_corpus(tmp_path / "c", FATES, build_config=EVERY_STAGE))))
    assert {tag for tag, _ in page.elements} <= {tag for tag, _ in clean.elements} | {"code", "ul", "li"}
    assert len(page.named("script")) == 1 and page.text("script") == clean.text("script")
    assert page.text("h1") == HOSTILE and HOSTILE in page.text("title")
    assert HOSTILE in page.texts["li"] and HOSTILE in page.texts["code"]
    # The language twice (chart and table), source, reason twice, and the mixture's language.
    assert page.texts["th"].count(HOSTILE) == 5 and page.texts["td"].count(HOSTILE) == 3


def test_tables_are_tables(report):
    page = Page(render(report))
    assert len(page.named("table")) == len(page.named("caption")) == 7
    assert all(attributes.get("scope") in ("row", "col") for attributes in page.named("th"))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    assert {attributes["aria-labelledby"] for attributes in page.named("section")} == set(ids)
    assert all(attributes["aria-hidden"] == "true" for attributes in page.named("svg"))
    for attributes in page.named("div"):
        if attributes.get("class") == "scroll":
            assert attributes["role"] == "region" and attributes["aria-label"] and attributes["tabindex"] == "0"
    assert page.named("html")[0]["lang"] == "en"


def test_numbers_are_on_the_page(report):
    text = render(report)
    for number in ("2,830", "1,500", "1,330", "17.0 kB", "11.5 kB", "67.6%", "~4.42k", "2,930", "3.98", "a note"):
        assert number in text, number
    assert "not in this build" not in text
    report.off = ["contaminated"]
    assert render(report).count("not in this build") == 1


def test_the_same_corpus_has_the_same_page(report, tmp_path):
    again = make_report(save_corpus(tmp_path / "corpus", FATES, notes=("a note",), build_config=EVERY_STAGE))
    assert render(report) == render(again)


def test_bars_fill_what_they_should(report):
    for flow in report.languages:
        parts = language_bar(flow)
        assert sum(part.width for part in parts) == pytest.approx(100, abs=0.01)
        assert [BAR_STAGES.index(part.stage) for part in parts] == sorted(
            BAR_STAGES.index(part.stage) for part in parts
        )
        for part in parts:
            amount = {"train": flow.train, "heldout": flow.heldout, **flow.lost}[part.stage]
            assert part.width == pytest.approx(100 * amount.bytes / flow.read.bytes, abs=0.001)
    for step in report.total.steps():
        left, *lost = funnel_bar(step, report.total.read, "bytes")
        assert left.width == pytest.approx(100 * step.left.bytes / report.total.read.bytes, abs=0.001)
        assert not lost or (lost[0].stage, lost[0].x) == (step.stage, left.width)


def test_a_language_of_nothing_but_empty_documents_has_no_bar():
    assert language_bar(Flow(name="x", side="code", read=Amount(documents=1))) == []


# --- colours ---------------------------------------------------------------------------------------------------------


def _colours(css: str) -> dict[str, str]:
    return dict(re.findall(r"--([a-z_]+): (#[0-9a-f]{6})", css))


def _luminance(colour: str) -> float:
    """Relative luminance, WCAG 2.2."""
    channels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: str, other: str) -> float:
    high, low = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(report, scheme):
    css = Page(render(report)).text("style")
    dark = re.compile(r"@media \(prefers-color-scheme: dark\) \{.*?\n\}", re.DOTALL)
    colours = _colours(dark.sub("", css)) if scheme == "light" else _colours("".join(dark.findall(css)))
    for ground in ("page", "card"):
        for text in ("text", "muted", "accent"):
            assert _contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for stage in ("train", "heldout", *LOSSES):
        assert _contrast(colours[stage], colours["card"]) >= 3, stage
