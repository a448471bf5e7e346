"""The report as tables on the terminal: a summary for the end of a build, and all of it for `loopcoder data report`."""

from collections.abc import Sequence

from data_pipeline.mixture import KINDS
from data_pipeline.report import units
from data_pipeline.report.flows import LOSSES, Amount, Flow, top_and_others
from data_pipeline.report.funnel import Report

STAGE_NAMES = {
    "read": "read",
    "capped": "caps",
    "filtered": "filters",
    "duplicate": "exact duplicates",
    "near_duplicate": "near duplicates",
    "contaminated": "contamination",
    "redacted": "redaction",
    "fim": "fill-in-the-middle",
    "skipped": "never a document",
}
"""What a stage is called in tables and on the page."""
_DROPPED_HEADINGS = ("capped", "filtered", "duplicate", "near dup.", "contam.", "redacted")
_SIDE_HEADINGS = ("side", "read", "size", *_DROPPED_HEADINGS, "kept", "size", "train tokens", "held-out tokens")
_FLOW_HEADINGS = (
    *(
        "read",
        "size",
        "~tokens",
        "kept",
        "size",
        "of size",
        "train tokens",
        "of side",
        "held-out tokens",
        "bytes/token",
    ),
)


def aligned_columns(header: tuple[str, ...], rows: Sequence[tuple[str, ...]], left: int) -> list[str]:
    """Lines of a table with aligned columns: the first `left` to the left, the numbers to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = []
    for row in [header, *rows]:
        cells = [
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def verdict(report: Report) -> str:
    """The report in one sentence."""
    total, kept = report.total, report.total.kept
    sides = ", ".join(f"{flow.name} {flow.train.tokens:,}" for flow in report.sides)
    share = units.percent(kept.bytes, total.read.bytes)
    return (
        f"{kept.documents:,} of {total.read.documents:,} documents were kept, {units.size(kept.bytes)} of "
        f"{units.size(total.read.bytes)} ({share}): {total.train.tokens:,} tokens to train on ({sides}) and "
        f"{total.heldout.tokens:,} held out. Every document that was read is accounted for."
    )


def summary(report: Report) -> list[str]:
    """Lines for the end of a build: the verdict, and a row for each side."""
    flows = [*report.sides, report.total] if len(report.sides) > 1 else report.sides
    return [verdict(report), "", *aligned_columns(_SIDE_HEADINGS, [_side_row(flow) for flow in flows], left=1)]


def describe(report: Report) -> str:
    """All tables: sides, the funnel, languages (top ten of each side), sources, reasons; then the notes."""
    lines = [
        f"corpus {report.directory}  manifest {report.manifest_hash[:16]}  tokenizer {report.tokenizer_hash[:16]} "
        f"({report.vocab_size:,} tokens)",
        *("", *summary(report), ""),
        *aligned_columns(
            ("stage", "left", "size", "tokens", "dropped", "size", "~tokens"), _funnel_rows(report), left=1
        ),
        "",
        *aligned_columns(("language", "side", *_FLOW_HEADINGS), _language_rows(report), left=2),
        *("", *aligned_columns(("source", "side", *_FLOW_HEADINGS), _source_rows(report), left=2), ""),
        *aligned_columns(("stage", "reason", "sources", "documents", "size"), _reason_rows(report), left=3),
    ]
    if any(share.planned is not None for share in report.mixture):
        lines += ["", *_mixture_table(report)]
    return "\n".join(lines + ([""] + [f"note: {note}" for note in report.notes] if report.notes else []))


def _side_row(flow: Flow) -> tuple[str, ...]:
    drops = [f"{flow.changed if stage == 'redacted' else flow.lost[stage].documents:,}" for stage in LOSSES]
    return (
        flow.name, f"{flow.read.documents:,}", units.size(flow.read.bytes), *drops, f"{flow.kept.documents:,}",
        units.size(flow.kept.bytes), f"{flow.train.tokens:,}", f"{flow.heldout.tokens:,}",
    )  # fmt: skip


def _funnel_rows(report: Report) -> list[tuple[str, ...]]:
    rows = []
    for step in report.total.steps():
        lost = ("", "", "")
        if step.stage in report.off:
            lost = ("(off)", "", "")
        elif step.stage != "read":
            documents = f"{report.total.changed:,} changed" if step.stage == "redacted" else f"{step.lost.documents:,}"
            lost = (documents, units.size(step.lost.bytes), units.tokens(step.lost.tokens, about=True))
        name = STAGE_NAMES[step.stage] if step.stage == "read" else f"after {STAGE_NAMES[step.stage]}"
        left = step.left
        rows.append((name, f"{left.documents:,}", units.size(left.bytes), units.tokens(left.tokens, step.about), *lost))
    for name, amount in parts_of_kept(report.total):
        rows.append((f"  {name}", f"{amount.documents:,}", _size_of(amount), f"{amount.tokens:,}", "", "", ""))
    return rows


def parts_of_kept(flow: Flow) -> list[tuple[str, Amount]]:
    """What was kept by its purpose; fill-in-the-middle, a part of training, where there is any."""
    parts = [("training", flow.train), ("held out", flow.heldout)]
    return parts + ([("fill-in-the-middle, in training", flow.fim)] if flow.fim.documents else [])


def _size_of(amount: Amount) -> str:
    """Sentinels have no bytes."""
    return units.size(amount.bytes) if amount.bytes else ""


def _flow_row(flow: Flow, side: Flow | None) -> tuple[str, ...]:
    """`side`: the whole that its share is of; None for a source that has both sides."""
    return (
        flow.name, flow.side, f"{flow.read.documents:,}", units.size(flow.read.bytes),
        units.tokens(flow.read.tokens, flow.read.bytes != flow.kept.bytes), f"{flow.kept.documents:,}",
        units.size(flow.kept.bytes), units.percent(flow.kept.bytes, flow.read.bytes), f"{flow.train.tokens:,}",
        units.percent(flow.train.tokens, side.train.tokens) if side else units.NOTHING, f"{flow.heldout.tokens:,}",
        units.ratio(flow.bytes_per_token),
    )  # fmt: skip


def _language_rows(report: Report) -> list[tuple[str, ...]]:
    rows = []
    for side in report.sides:
        members = [flow for flow in report.languages if flow.side == side.name]
        rows += [_flow_row(flow, side) for flow in top_and_others(members)]
        rows.append(("total", *_flow_row(side, side)[1:]))
    return rows


def _source_rows(report: Report) -> list[tuple[str, ...]]:
    return [_flow_row(flow, report.side(flow.side) if flow.side in KINDS else None) for flow in report.sources]


def _reason_rows(report: Report) -> list[tuple[str, ...]]:
    return [
        (
            STAGE_NAMES[item.stage], item.reason, ", ".join(item.sources), f"{item.amount.documents:,}",
            units.size(item.amount.bytes),
        )
        for item in report.reasons
    ]  # fmt: skip


def _mixture_table(report: Report) -> list[str]:
    rows = [
        (
            share.name, share.side, f"{share.train.tokens:,}", f"{100 * share.share:.1f}",
            "" if share.planned is None else f"{100 * share.planned:.1f}",
        )
        for share in report.mixture
    ]  # fmt: skip
    heading = f"% planned ({report.language_manifest})"
    return aligned_columns(("source of the mixture", "side", "train tokens", "% of side", heading), rows, left=2)
