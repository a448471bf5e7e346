"""A finished sweep as a page of docs/benchmarks: `python -m tests.benchmarks.study SWEEP NAME` reads SWEEP/report.json
and writes NAME.md and NAME.png. Nothing is trained here; `make study` does that."""

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "benchmarks"
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#999999")  # Okabe and Ito
COMMANDS = {
    "study": "make study",
    "study_seeds": "make study-seeds",
}
LENSES = ("step_size", "angular_change", "effective_rank", "fixed_point_gap", "offset_cost", "gate_mean", "output_kl",
          "loss")  # fmt: skip

Json = dict[str, Any]


def main(sweep: Path, name: str) -> None:
    """Page and figure."""
    report = json.loads((sweep / "report.json").read_bytes())
    draw(report, FOLDER / f"{name}.png")
    (FOLDER / f"{name}.md").write_text("\n".join(page(report, sweep, name)) + "\n", encoding="utf-8")


def page(report: Json, sweep: Path, name: str) -> list[str]:
    """The lines of the page."""
    when = datetime.fromtimestamp((sweep / "report.json").stat().st_mtime, UTC)
    environment = report["environment"]
    first = report["arms"][0]
    of_which = "" if len(first_seed(report)) == len(report["arms"]) else ", first seed"
    return [
        f"# {'The study' if name == 'study' else 'Several seeds'}: how many loops?",
        "",
        f"`{COMMANDS[name]}`, finished on {when:%Y-%m-%d}; {environment['reported on']}, torch {environment['torch']}, "
        f"{environment['training.precision']}, engine {environment['engine']}. All stages took "
        f"{minutes(sweep):.0f} minutes. This page: `python -m tests.benchmarks.study {sweep} {name}`.",
        "",
        f"**{report['verdict']['sentence']}**",
        "",
        f"![losses and lenses]({name}.png)",
        "",
        *arms_table(report),
        "",
        f"Bigram baseline {report['verdict']['bigram_loss']:.4f}, unigram entropy {first['unigram_entropy']:.4f} nats "
        "per token. Loss: held-out documents, after pretraining. Differences are paired and their intervals hold "
        "jointly. KV: of one sequence, bf16.",
        "",
        f"## Another number of loops at inference{of_which}",
        "",
        *inference_table(report),
        "",
        f"## The lenses of the arm with the most loops{of_which}",
        "",
        *lens_table(report),
        "",
        "## Proof of match",
        "",
        *proof_table(report),
        "",
        "## What this does and does not show",
        "",
        *caveats(report),
    ]


def minutes(sweep: Path) -> float:
    """Sum over the stages of all arms, each as long as its successful process took."""
    records = [json.loads(path.read_bytes()) for path in sweep.glob("*/stages/*.json")]
    return sum(record["seconds"] for record in records) / 60


def table(heads: list[str], rows: list[list[str]]) -> list[str]:
    """A table in Markdown."""
    return [f"| {' | '.join(line)} |" for line in (heads, ["---"] * len(heads), *rows)]


def estimate(value: Json | None, digits: int = 4) -> str:
    """`5.0123 ± 0.0456`."""
    if value is None:
        return "-"
    half = "" if value["half_width"] is None else f" ± {value['half_width']:.{digits}f}"
    return f"{value['mean']:.{digits}f}{half}"


def arms_table(report: Json) -> list[str]:
    """One row per value; references below."""
    rows = []
    for value in report["verdict"]["values"]:
        arm = next(arm for arm in report["arms"] if arm["label"] == value["label"])
        rows.append([value["label"], estimate(value["loss"]), estimate(value["difference"]), *costs(arm, report)])
    rows += [
        [f"{arm['label']} (reference)", estimate(arm["loss"]), "-", *costs(arm, report)]
        for arm in report["arms"]
        if arm["reference"]
    ]
    heads = ["arm", "loss", "worse than the best by", "tuned: assistant's words", "training FLOPs", "training time",
             "parameters", "KV bytes"]  # fmt: skip
    return table(heads, rows)


def costs(arm: Json, report: Json) -> list[str]:
    """Tuning loss, FLOPs, minutes, parameters and KV bytes of an arm; time is the mean over seeds."""
    same = [other for other in report["arms"] if other["label"] == arm["label"]]
    seconds = sum(other["training_seconds"] for other in same) / len(same)
    tuned = "-"
    if arm["tuned"]:
        tuned = f"{sum(other['tuned']['loss'] for other in same) / len(same):.4f}"
    return [tuned, f"{arm['training_flops']:.3g}", f"{seconds / 60:.1f} min", f"{arm['parameters']:,}",
            f"{arm['kv_cache_bytes']:,}"]  # fmt: skip


def inference_table(report: Json) -> list[str]:
    """Held-out loss of every arm of the first seed at every R."""
    arms = first_seed(report)
    loops = sorted({int(r) for arm in arms for r in arm["inference"]})
    rows = []
    for arm in arms:
        cells = [arm["inference"].get(str(r)) for r in loops]
        own = arm["num_loops"]
        shown = ["-" if cell is None else f"{cell:.4f}" for cell in cells]
        rows.append([arm["label"], *(f"**{c}**" if r == own else c for r, c in zip(loops, shown, strict=True))])
    return table(["trained", *(f"R = {r}" for r in loops)], rows)


def first_seed(report: Json) -> list[Json]:
    """One arm per label."""
    arms: dict[str, Json] = {}
    for arm in report["arms"]:
        arms.setdefault(arm["label"], arm)
    return list(arms.values())


def most_loops(report: Json) -> Json | None:
    """The diagnosis of the matched arm with the most loops."""
    matched = [arm for arm in report["arms"] if arm["reference"] is None and arm["diagnosis"]]
    return max(matched, key=lambda arm: arm["num_loops"])["diagnosis"] if matched else None


def lens_table(report: Json) -> list[str]:
    """Mean and half width by loop."""
    diagnosis = most_loops(report)
    if diagnosis is None:
        return ["No arm was diagnosed."]
    loops = diagnosis["loops"]
    rows = [[lens, *(of_loop(loops[loop].get(lens)) for loop in loops)] for lens in LENSES]
    return table([f"{diagnosis['num_samples']} samples", *(f"loop {loop}" for loop in loops)], rows)


def of_loop(value: Json | None) -> str:
    """`1.23 ± 0.04`."""
    if value is None:
        return ""
    low, high = value["ci95"] or (None, None)
    return f"{value['mean']:.4g}" + ("" if low is None else f" ± {(high - low) / 2:.2g}")


def proof_table(report: Json) -> list[str]:
    """Every check of every stage."""
    rows = [
        [proof["title"], check["name"], check["status"], check["evidence"]]
        for proof in report["proofs"]
        for check in proof["match"]["checks"]
    ]
    return table(["stage", "check", "", "what was compared"], rows)


def caveats(report: Json) -> list[str]:
    """What a reader must know before believing it; figures from the report."""
    arm, verdict = report["arms"][0], report["verdict"]
    per_parameter = arm["tokens"] / arm["parameters"]
    seeds = len({arm["seed"] for arm in report["arms"]})
    over = (
        f"Intervals are over {verdict['num_spread']:,} held-out documents of one seed: another seed may rank otherwise."
        if verdict["spread"] == "documents"
        else f"Intervals are t intervals over {seeds} seeds, with {seeds - 1} degrees of freedom: wide, and honest."
    )
    return [
        f"- {arm['parameters'] / 1e6:.1f} M parameters on {arm['tokens'] / 1e6:.1f} M tokens, {per_parameter:.1f} "
        "tokens per parameter; the paper's 7.6 B saw 18 T, about 2,400. This ranks loops for this size and budget, "
        "and says nothing about the paper's.",
        f"- {over}",
        "- Matched in tokens, not in FLOPs: an arm of R loops pays more (column training FLOPs).",
        "- The corpus is a Python environment's files (docs/data.md); there is no benchmark of code generation here.",
        "- Hyperparameters are those of the quick start for every arm; none was tuned for one R.",
    ]


def draw(report: Json, path: Path) -> None:
    """Loss against tokens and FLOPs, loss by R with intervals, and gain against cost."""
    figure = Figure(figsize=(10, 7.5), layout="constrained")
    (tokens, flops), (by_value, gain) = figure.subplots(2, 2)
    labels = [arm["label"] for arm in first_seed(report)]
    for arm in report["arms"]:
        style = {
            "color": COLOURS[labels.index(arm["label"]) % len(COLOURS)],
            "linestyle": "--" if arm["reference"] else "-",
            "label": arm["label"] if arm in first_seed(report) else None,
        }
        losses = [point["loss"] for point in arm["curve"]]
        tokens.plot([point["tokens"] / 1e6 for point in arm["curve"]], losses, **style)
        flops.plot([point["flops"] for point in arm["curve"]], losses, **style)
    for axes, label in ((tokens, "million tokens"), (flops, "training FLOPs")):
        axes.axhline(report["verdict"]["bigram_loss"], color="0.4", linestyle=":", label="bigram")
        dress(axes, label, "held-out loss, nats per token")
    tokens.legend(frameon=False, fontsize=8)
    draw_values(by_value, report)
    draw_gain_cost(gain, most_loops(report))
    figure.savefig(path, dpi=110)


def dress(axes: Axes, x_label: str, y_label: str) -> None:
    """Labels, a light grid."""
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def draw_values(axes: Axes, report: Json) -> None:
    """Paired difference to the best value, with its interval."""
    values = report["verdict"]["values"]
    for number, value in enumerate(values):
        difference = value["difference"] or {"mean": 0.0, "half_width": None}
        half = difference["half_width"] or 0.0
        axes.errorbar([number], [difference["mean"]], yerr=[half], marker="o", capsize=4, color=COLOURS[number])
    axes.set_xticks(range(len(values)), [value["label"] for value in values])
    dress(axes, "", "loss above the best, paired, jointly 95%")


def draw_gain_cost(axes: Axes, diagnosis: Json | None) -> None:
    """Output shift (logarithmic) and offset cost (second axis) by loop."""
    points = diagnosis["gain_cost"] if diagnosis else []
    if not points:
        axes.axis("off")
        return
    loops = [point["loop"] for point in points]
    axes.semilogy(
        loops, [point["gain"]["mean"] for point in points], "o-", color=COLOURS[0], label="gain: output shift"
    )
    dress(axes, "loop", "output shift, nats")
    right = axes.twinx()
    costs_of_loops = [point["cost"]["mean"] for point in points]
    right.plot(loops, costs_of_loops, "s--", color=COLOURS[4], label="cost: offset")
    right.set_ylabel(r"offset $\Omega$")
    right.set_ylim(0, 1.6 * max(costs_of_loops))  # room for the legend
    axes.set_xticks(loops)
    lines = [line for one in (axes, right) for line in one.get_lines()]
    axes.legend(lines, [line.get_label() for line in lines], frameon=False, fontsize=8)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
