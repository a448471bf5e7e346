"""The loss figure of a run, drawn from `metrics.jsonl`.

A thin line for every training step, a bold one smoothed over about 2% of the run, held-out losses per loop as points,
and the baselines as dashed lines; trained tokens on the x axis.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from loopcoder_train.training.metrics import Record
from loopcoder_train.training.progress import scaled

FIGURE_FILE = "loss.png"
_SMOOTHED_SHARE = 0.02  # of the run's steps
_LOOP_COLOURS = ("#e69f00", "#009e73", "#cc79a7", "#d55e00")  # Okabe and Ito: told apart by colour-blind readers too
_TRAIN_COLOUR = "#0072b2"
_MARKERS = "osD^v"


def draw_loss_figure(
    records: Sequence[Record], path: Path, *, baselines: Mapping[str, float], title: str = "", dpi: int = 150
) -> None:
    """Write a PNG to `path`. `records`: of `read_metrics`; `baselines`: label -> nats per token."""
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.add_subplot()
    train = [record for record in records if record["kind"] == "train" and record["loss"] is not None]
    evaluations = [record for record in records if record["kind"] == "evaluation"]
    _draw_training(axes, train)
    _draw_evaluations(axes, evaluations)
    for style, (label, value) in zip(("--", ":", "-."), baselines.items(), strict=False):
        axes.axhline(value, color="0.35", linestyle=style, linewidth=1.2, label=f"{label} ({value:.2f})")
    axes.set_xlabel("trained tokens")
    axes.set_ylabel("loss (nats per token)")
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(lambda tokens, _: scaled(tokens))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=dpi)


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Centred mean over `window` neighbours, fewer at the ends; the same length."""
    before, after = (window - 1) // 2, window // 2
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    low, high = np.maximum(index - before, 0), np.minimum(index + after + 1, len(values))
    return (total[high] - total[low]) / (high - low)


def _draw_training(axes: Axes, train: list[Record]) -> None:
    if not train:
        return
    tokens = np.array([record["tokens"] for record in train])
    losses = np.array([record["loss"] for record in train], dtype=float)
    axes.plot(tokens, losses, color=_TRAIN_COLOUR, alpha=0.25, linewidth=0.8)
    window = max(1, round(_SMOOTHED_SHARE * len(train)))
    axes.plot(tokens, smooth(losses, window), color=_TRAIN_COLOUR, linewidth=1.8, label="training")


def _draw_evaluations(axes: Axes, evaluations: list[Record]) -> None:
    loops = sorted({key for record in evaluations for key in record if key.startswith("loss/loop")}, key=_loop_number)
    for index, key in enumerate(loops):
        points = [(record["tokens"], record[key]) for record in evaluations if record.get(key) is not None]
        axes.plot(
            *zip(*points, strict=True),
            marker=_MARKERS[index % len(_MARKERS)],
            markersize=5,
            linewidth=0.8,
            color=_LOOP_COLOURS[index % len(_LOOP_COLOURS)],
            label=f"held-out, read after loop {_loop_number(key)}",
        )


def _loop_number(key: str) -> int:
    return int(key.removeprefix("loss/loop"))
