"""The report as one HTML file that needs nothing else: no network, no fonts, and no script to be read.

The journey: `Report` -> the template in `templates/`, escaped by jinja2 -> one string, the same for the same corpus.
The script in it sorts tables, nothing more (html.py).

Bars are SVG rectangles in percent of their cell, so they fit any width; every number that a bar shows is also text.
"""

from dataclasses import dataclass

from data_pipeline.report import units
from data_pipeline.report.flows import LOSSES, Amount, Flow, Step, top_and_others
from data_pipeline.report.funnel import Report
from data_pipeline.report.html import assets, open_templates
from data_pipeline.report.table import STAGE_NAMES, parts_of_kept, verdict

BAR_STAGES = ("train", "heldout", *reversed(LOSSES))
"""Segments of a language's bar from left to right: what was kept, then what was dropped, the last stage first."""
_LEGEND = {**STAGE_NAMES, "train": "training", "heldout": "held out"}


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a bar. x, width: percent of the bar; stage: names the colour."""

    stage: str
    x: float
    width: float
    label: str


def render(report: Report) -> str:
    """The whole page."""
    environment = open_templates("data_pipeline.report")
    environment.filters.update(
        count=lambda number: f"{number:,}", size=units.size, scaled=units.scaled, short=units.short, ratio=units.ratio,
        percent=lambda share: units.percent(share, 1.0), stage=_LEGEND.__getitem__,
    )  # fmt: skip
    environment.globals.update(
        funnel_bar=funnel_bar, language_bar=language_bar, share_of=units.percent, tokens=units.tokens
    )
    return environment.get_template("page.html").render(
        report=report,
        verdict=verdict(report),
        parts=parts_of_kept(report.total),
        charts=[(side, top_and_others([flow for flow in report.languages if flow.side == side.name]))
                for side in report.sides],
        legend=[stage for stage in BAR_STAGES if stage not in report.off],
        losses=LOSSES,
        has_plan=any(share.planned is not None for share in report.mixture),
        **assets(environment, "page.css"),
    )  # fmt: skip


def funnel_bar(step: Step, whole: Amount, measure: str) -> list[Segment]:
    """What was left after a step, and what it took; `measure` is documents, bytes or tokens."""
    left, lost = getattr(step.left, measure), getattr(step.lost, measure)
    return _segments([("train", left, "left"), (step.stage, lost, "dropped")], getattr(whole, measure))


def language_bar(flow: Flow) -> list[Segment]:
    """Where the bytes of a language went."""
    parts = {"train": flow.train, "heldout": flow.heldout, **flow.lost}
    return _segments(
        [
            (stage, parts[stage].bytes, f"{_LEGEND[stage]}: {units.size(parts[stage].bytes)}, "
             f"{units.percent(parts[stage].bytes, flow.read.bytes)}")
            for stage in BAR_STAGES
        ],
        flow.read.bytes,
    )  # fmt: skip


def _segments(parts: list[tuple[str, int, str]], whole: int) -> list[Segment]:
    """Parts of a whole side by side; those of nothing are left out."""
    segments, before = [], 0
    for stage, value, label in parts:
        if value > 0:
            segments.append(Segment(stage, round(100 * before / whole, 3), round(100 * value / whole, 3), label))
        before += value
    return segments
