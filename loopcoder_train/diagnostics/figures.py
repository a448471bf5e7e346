"""The figures of a diagnosis: dynamics, attention, output, and gain against cost. Bars are 95% intervals."""

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from loopcoder_train.diagnostics.confidence import Estimate
from loopcoder_train.diagnostics.diagnosis import Diagnosis
from loopcoder_train.diagnostics.gain_cost import gain_cost

# Okabe and Ito: told apart by colour-blind readers too.
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00")
_MARKERS = "osD^v"

# Title of each panel, and its lines: lens -> label.
Panels = Sequence[tuple[str, dict[str, str]]]

_DYNAMICS: Panels = (
    ("step size", {"step_size": "raw states", "step_size_normed": "normed states"}),
    ("cosine of successive updates", {"angular_change": "below 0: oscillation"}),
    ("effective rank of the states", {"effective_rank": "normed states", "effective_rank_raw": "raw states"}),
    ("fixed-point gap", {"fixed_point_gap": "the stack alone", "fixed_point_gap_loop": "the whole loop map"}),
)
_ATTENTION: Panels = (
    (
        "entropy, nats",
        {"attention_entropy": "mixture", "attention_entropy_global": "global", "attention_entropy_local": "local"},
    ),
    (
        "KL to the loop before, nats",
        {"attention_kl": "mixture", "attention_kl_global": "global", "attention_kl_local": "local"},
    ),
    ("effective rank of heads", {"head_rank": "mixture", "head_rank_global": "global", "head_rank_local": "local"}),
    ("mean gate (1 = global)", {"gate_mean": "mean over layers"}),
)
_OUTPUT: Panels = (
    ("loss and entropy, nats", {"loss": "loss", "output_entropy": "entropy"}),
    ("rank of the true token", {"true_token_rank": "1 = most probable"}),
    ("output shift, nats", {"output_kl": "KL(p(r) || p(r-1))"}),
    (
        "shares of the loops r >= 2",
        {
            "output_kl_share": "output shift",
            "attention_kl_share": "attention change",
            "peak_loop_share": "tokens that peak",
        },
    ),
)


def draw_figures(diagnosis: Diagnosis, folder: Path, title: str) -> list[Path]:
    """Write the PNGs into `folder`, which exists; no gain-cost figure where there is no loop r >= 2 with an offset."""
    drawn = []
    for name, panels in (("dynamics", _DYNAMICS), ("attention", _ATTENTION), ("output", _OUTPUT)):
        drawn.append(_save(folder / f"{name}.png", lambda figure, p=panels: _draw_panels(figure, diagnosis, p), title))
    if gain_cost(diagnosis.estimates, diagnosis.num_loops):
        drawn.append(_save(folder / "gain_cost.png", lambda figure: _draw_gain_cost(figure, diagnosis), title))
    return drawn


def _save(path: Path, draw: Callable[[Figure], None], title: str) -> Path:
    figure = Figure(figsize=(9, 6.5), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    draw(figure)
    figure.savefig(path, dpi=120)
    return path


def _draw_panels(figure: Figure, diagnosis: Diagnosis, panels: Panels) -> None:
    """Four panels; one whose lenses this model has not says so."""
    for axes, (title, lenses) in zip(figure.subplots(2, 2).flat, panels, strict=True):
        series = {label: diagnosis.series(lens) for lens, label in lenses.items()}
        series = {label: values for label, values in series.items() if values}
        axes.set_title(title, loc="left", fontsize=10)
        _dress(axes, range(1, diagnosis.num_loops + 1))
        if not series:
            axes.set_yticks([])
            axes.text(0.5, 0.5, "this model has none", ha="center", va="center", transform=axes.transAxes, color="0.4")
        for style, (label, values) in enumerate(series.items()):
            _draw_series(axes, values, label, style)
        if series:
            axes.legend(frameon=False, fontsize=8)


def _draw_series(axes: Axes, values: dict[int, Estimate], label: str, style: int) -> None:
    means = [value.mean for value in values.values()]
    axes.errorbar(
        list(values),
        means,
        yerr=[value.half_width or 0.0 for value in values.values()],
        marker=_MARKERS[style],
        color=_COLOURS[style],
        markersize=5,
        linewidth=1.2,
        capsize=3,
        label=label,
    )


def _dress(axes: Axes, loops: range) -> None:
    axes.set_xticks(loops, [f"loop {loop}" for loop in loops])
    axes.set_xlim(loops[0] - 0.4, loops[-1] + 0.4)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_gain_cost(figure: Figure, diagnosis: Diagnosis) -> None:
    """Output shift on a logarithmic axis, Omega on a second one, as in the paper."""
    series = gain_cost(diagnosis.estimates, diagnosis.num_loops)
    left = figure.add_subplot()
    right = left.twinx()
    _dress(left, range(2, diagnosis.num_loops + 1))
    _draw_series(left, {point.loop: point.gain for point in series}, "gain: output shift", 0)
    _draw_series(right, {point.loop: point.cost for point in series}, "cost: offset Omega", 4)
    left.set_yscale("log")
    left.margins(y=0.4)
    left.set_ylabel("output shift KL(p(r) || p(r-1)), nats", color=_COLOURS[0])
    right.set_ylabel("offset cost Omega(r)", color=_COLOURS[4])
    right.spines["top"].set_visible(False)
    right.set_ylim(bottom=0)
    handles = [axes.get_legend_handles_labels() for axes in (left, right)]
    left.legend(handles[0][0] + handles[1][0], handles[0][1] + handles[1][1], frameon=False, fontsize=9)
