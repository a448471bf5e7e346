"""The report as one HTML file that needs nothing else (data_pipeline/report/html.py).

The journey: `Report` -> charts (chart.py) and rows -> the template in `templates/`, escaped by jinja2 -> one string,
the same for the same report. Every number of a table carries its exact value as `data-value`, that of report.json.
"""

from collections.abc import Callable, Sequence
from typing import Any

from data_pipeline.report import units
from data_pipeline.report.html import assets, open_templates
from loopcoder_train.diagnostics.catalogue import CATALOGUE
from loopcoder_train.diagnostics.confidence import Estimate
from loopcoder_train.sweep.report import paper
from loopcoder_train.sweep.report.chart import Chart, Datum, Series, draw, marker, short
from loopcoder_train.sweep.report.report import Report
from loopcoder_train.sweep.results import ArmResult, Point, by_value

PACKAGE = "loopcoder_train.sweep.report"
_COLOURS = 8  # in report.css
_TITLES = {entry.name: entry.title.strip() for entry in CATALOGUE}

# Lenses of each group of figures, and whether theirs is a logarithmic axis.
GROUPS = {
    "Dynamics": (
        ("step_size", False), ("angular_change", False), ("effective_rank", False),
        ("fixed_point_gap", False), ("offset_cost", False),
    ),
    "Attention": (("attention_entropy", False), ("attention_kl", True), ("head_rank", False), ("gate_mean", False)),
    "Output": (
        ("loss", False), ("output_kl", True), ("true_token_rank", False), ("output_entropy", False),
        ("output_kl_share", False), ("peak_loop_share", False),
    ),
}  # fmt: skip


def render(report: Report) -> str:
    """The whole page."""
    environment = open_templates(PACKAGE)
    environment.filters.update(
        count=lambda number: f"{number:,}", size=units.size, scaled=units.scaled, short=short, loss=_loss,
        duration=duration, flops=lambda value: f"{short(value)}FLOP",
    )  # fmt: skip
    environment.globals.update(marker=marker, interval=interval, half=half_width, colour=lambda arm: colours[arm.name])
    colours = colours_of(report.arms)
    diagnosed = [arm for arm in of_one_seed(report.arms) if arm.diagnosis]
    return environment.get_template("report.html").render(
        report=report,
        verdict=report.verdict,
        curves=[chart for chart in curves(report, colours) if chart],
        groups=[(name, charts) for name in GROUPS if (charts := lens_charts(diagnosed, GROUPS[name], colours))],
        gain_cost=[chart for arm in diagnosed if arm.reference is None and (chart := gain_cost(arm))],
        paper_rows=paper_rows(diagnosed),
        scores=paper.SCORES,
        languages=languages(report.arms),
        language_columns=[group[0].label for group in by_value(report.arms)],
        loops=max(max(arm.inference) for arm in report.arms),
        titles=_TITLES,
        **assets(environment, "report.css"),
    )


def colours_of(arms: Sequence[ArmResult]) -> dict[str, int]:
    """Arm -> number of its colour: one per label, so that the seeds of a value look alike."""
    labels = list(dict.fromkeys(arm.label for arm in arms))
    return {arm.name: labels.index(arm.label) % _COLOURS for arm in arms}


def of_one_seed(arms: Sequence[ArmResult]) -> list[ArmResult]:
    """An arm of every label, all of one seed where a seed has them all; else the first of each."""
    labels, seeds = (list(dict.fromkeys(getattr(arm, name) for arm in arms)) for name in ("label", "seed"))
    by_seed = {seed: {arm.label: arm for arm in arms if arm.seed == seed} for seed in seeds}
    whole = next((found for found in by_seed.values() if len(found) == len(labels)), None)
    first = whole or {arm.label: arm for arm in reversed(arms)}
    return [first[label] for label in labels]


def curves(report: Report, colours: dict[str, int]) -> list[Chart | None]:
    """Held-out loss while training, against tokens and against FLOPs."""

    def series(x: Callable[[Point], float]) -> list[Series]:
        return [
            Series(
                label=arm.label,
                colour=colours[arm.name],
                data=[Datum(x(point), point.loss) for point in arm.curve],
                dashed=arm.reference is not None,
            )
            for arm in report.arms
        ]

    baseline = (report.verdict.bigram_loss, "bigram")
    y = {"y_label": "nats per token", "baseline": baseline}
    return [
        draw("Loss against tokens", series(lambda point: point.tokens), x_label="tokens", **y),
        draw("Loss against training FLOPs", series(lambda point: point.flops), x_label="FLOPs", **y),
    ]


def lens_charts(
    arms: Sequence[ArmResult], lenses: Sequence[tuple[str, bool]], colours: dict[str, int]
) -> list[tuple[str, Chart]]:
    """(lens, chart) of each lens that some arm has, by loop."""
    charts = []
    for lens, log in lenses:
        series = [
            Series(
                label=arm.label, colour=colours[arm.name], data=lens_data(arm, lens), dashed=arm.reference is not None
            )
            for arm in arms
        ]
        chart = draw(_TITLES[lens], series, x_label="loop", log_y=log, whole_x=True)
        if chart:
            charts.append((lens, chart))
    return charts


def lens_data(arm: ArmResult, lens: str) -> list[Datum]:
    """One lens by loop, from diagnostics.json."""
    return [_datum(int(loop), values[lens]) for loop, values in arm.diagnosis["loops"].items() if lens in values]


def _datum(x: float, estimate: dict[str, Any]) -> Datum:
    low, high = estimate["ci95"] or (None, None)
    return Datum(x, estimate["mean"], low, high)


def gain_cost(arm: ArmResult) -> Chart | None:
    """Output shift of each loop (logarithmic) against its offset cost (second axis); None for an arm without either."""
    points = arm.diagnosis["gain_cost"]
    gain = [_datum(point["loop"], point["gain"]) for point in points]
    cost = [_datum(point["loop"], point["cost"]) for point in points]
    return draw(
        arm.label,
        [
            Series(label="gain: output shift", colour=0, data=gain),
            Series(label="cost: offset \N{GREEK CAPITAL LETTER OMEGA}", colour=1, data=cost, right=True, dashed=True),
        ],
        x_label="loop",
        y_label="gain, nats",
        right_label="cost",
        log_y=True,
        whole_x=True,
    )


def paper_rows(arms: Sequence[ArmResult]) -> list[tuple[str, int, float, Datum | None]]:
    """(lens, loop, the paper's value, ours) for the matched arm with the most loops."""
    matched = [arm for arm in arms if arm.reference is None]
    if not matched:
        return []
    most = max(matched, key=lambda arm: arm.num_loops)
    rows = []
    for lens, values in paper.DIAGNOSTICS.items():
        ours = {datum.x: datum for datum in lens_data(most, lens)}
        rows += [(lens, loop, value, ours.get(loop)) for loop, value in values.items()]
    return rows


def languages(arms: Sequence[ArmResult]) -> list[tuple[str, int, list[float | None]]]:
    """(language, supervised tokens, loss of each value) of one seed, most tokens first."""
    columns = [arm for arm in of_one_seed(arms) if arm.reference is None]
    names = {name: entry["supervised_tokens"] for arm in columns for name, entry in arm.by_language.items()}
    ordered = sorted(names, key=lambda name: (-names[name], name))
    return [(name, names[name], [_of_language(arm, name) for arm in columns]) for name in ordered]


def _of_language(arm: ArmResult, name: str) -> float | None:
    entry = arm.by_language.get(name)
    return entry["loop_losses"][-1] if entry else None


def _loss(value: float | None) -> str:
    return units.NOTHING if value is None else f"{value:.4f}"


def interval(estimate: Estimate | None) -> str:
    """`[4.61, 4.70]` with four decimals; a dash where there is none."""
    if estimate is None or estimate.half_width is None:
        return units.NOTHING
    return f"[{estimate.low:.4f}, {estimate.high:.4f}]"


def half_width(estimate: Estimate) -> str:
    """` ± 0.0412`, or nothing."""
    return "" if estimate.half_width is None else f" ± {estimate.half_width:.4f}"


def duration(seconds: float) -> str:
    """`42 s`, `12.3 min`, `3.4 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
