"""The short table of a held-out evaluation, for a terminal."""

from loopcoder_train.evaluation.heldout import HeldOutReport, Loss

MAX_LANGUAGES = 12


def format_report(
    report: HeldOutReport, *, unigram_entropy: float | None = None, bigram_loss: float | None = None
) -> str:
    """Overall, per kind and per language: loss after every loop, bits per byte, tokens; below it the baselines."""
    loops = [f"loop {number}" for number in range(1, report.num_loops + 1)]
    header = ["held-out loss, nats per token", *loops, "bits/byte", "tokens"]
    rows = [_row("everything", report.overall), None]
    rows += [_row(kind, loss) for kind, loss in report.by_kind.items()]
    rows.append(None)
    languages = sorted(report.by_language.items(), key=lambda item: -item[1].supervised_tokens)
    rows += [_row(language, loss) for language, loss in languages[:MAX_LANGUAGES]]
    if len(languages) > MAX_LANGUAGES:
        rows.append([f"... {len(languages) - MAX_LANGUAGES} more languages in evaluation.json"])
    baselines = [("unigram entropy of the same tokens", unigram_entropy), ("bigram model of the corpus", bigram_loss)]
    shown = [[name, *[""] * (report.num_loops - 1), f"{value:.4f}"] for name, value in baselines if value is not None]
    if shown:
        rows += [None, *shown]
    return align(header, rows)


def _row(name: str, loss: Loss) -> list[str]:
    bits = "" if loss.bits_per_byte is None else f"{loss.bits_per_byte:.4f}"
    return [name, *[f"{value:.4f}" for value in loss.loop_losses], bits, f"{loss.supervised_tokens:,}"]


def align(header: list[str], rows: list[list[str] | None]) -> str:
    """A table: first column left, the others right; None is a rule, a row of one cell may be longer than its column."""
    cells = [header, *[row for row in rows if row is not None and len(row) > 1]]
    widths = [max(len(row[column]) for row in cells if column < len(row)) for column in range(len(header))]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    lines = [_line(header, widths), rule]
    lines += [rule if row is None else _line(row, widths) for row in rows]
    return "\n".join(lines)


def _line(row: list[str], widths: list[int]) -> str:
    first = row[0].ljust(widths[0])
    return "  ".join([first, *[cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=False)]]).rstrip()
