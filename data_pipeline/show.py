"""`loopcoder data show`: a corpus as tables of text - what is in it, and where the rest of the documents went."""

from dataclasses import dataclass

from data_pipeline.epochs import DEFAULT_SHUFFLE_BLOCK_TOKENS, SourceEpochs
from data_pipeline.ledger import STAGES, Ledger
from data_pipeline.manifest import Corpus, SourceInfo
from data_pipeline.mixture import KINDS
from data_pipeline.report.table import aligned_columns

_TOP = 10
_HEADER = ("source", "side", "language", "documents", "MB", "train tokens", "% of side", "held-out tokens", "tail")


@dataclass(kw_only=True, slots=True)
class _Line:
    """One row of the table; `tail`: training tokens after the last whole shuffle block."""

    name: str
    kind: str
    language: str
    documents: int = 0
    bytes: int = 0
    train: int = 0
    heldout: int = 0
    tail: int = 0

    def add(self, source: SourceInfo, shuffle_block_tokens: int) -> "_Line":
        self.documents += source.train.documents + source.heldout.documents
        self.bytes += source.train.bytes + source.heldout.bytes
        self.train += source.train.tokens
        self.heldout += source.heldout.tokens
        self.tail += SourceEpochs(source, shuffle_block_tokens).tail_tokens
        return self

    def cells(self, side_tokens: int) -> tuple[str, ...]:
        share = 100 * self.train / side_tokens if side_tokens else 0.0
        return (
            self.name, self.kind, self.language, f"{self.documents:,}", f"{self.bytes / 1e6:.2f}",
            f"{self.train:,}", f"{share:.1f}", f"{self.heldout:,}", f"{self.tail:,}",
        )  # fmt: skip


def describe(corpus: Corpus, shuffle_block_tokens: int = DEFAULT_SHUFFLE_BLOCK_TOKENS) -> str:
    """The tables of a corpus: sources (top ten of each side + Others), then stages and reasons, then notes.

    `tail` depends on shuffle_block_tokens: training tokens that no whole block holds, which the stream never shows.
    Raises DataError when the ledger is missing or damaged.
    """
    manifest, ledger = corpus.manifest, Ledger.load(corpus.directory)
    lines = [
        f"corpus {corpus.directory}  manifest {manifest.manifest_hash[:16]}  "
        f"tokenizer {manifest.tokenizer_hash[:16]} ({manifest.vocab_size:,} tokens, {manifest.dtype})",
        "",
        *aligned_columns(_HEADER, _source_rows(corpus, shuffle_block_tokens), left=3),
        "",
        *aligned_columns(("stage", "source", "reason", "documents", "MB", "tokens"), _ledger_rows(ledger), left=3),
    ]
    return "\n".join(lines + ([""] + [f"note: {note}" for note in ledger.notes] if ledger.notes else []))


def _source_rows(corpus: Corpus, shuffle_block_tokens: int) -> list[tuple[str, ...]]:
    rows = []
    for kind in KINDS:
        members = [source for source in corpus.manifest.sources if source.kind == kind]
        if not members:
            continue
        members.sort(key=lambda source: (-source.train.tokens, source.name))
        lines = [
            _Line(name=source.name, kind=kind, language=source.language).add(source, shuffle_block_tokens)
            for source in members[:_TOP]
        ]
        if len(members) > _TOP:
            others = _Line(name="Others", kind=kind, language=f"{len(members) - _TOP} sources")
            for source in members[_TOP:]:
                others.add(source, shuffle_block_tokens)
            lines.append(others)
        total = _Line(name="total", kind=kind, language=f"{len(members)} sources")
        for source in members:
            total.add(source, shuffle_block_tokens)
        rows += [line.cells(total.train) for line in [*lines, total]]
    return rows


def _ledger_rows(ledger: Ledger) -> list[tuple[str, ...]]:
    rows = []
    for source in sorted({row.source for row in ledger.rows()}):
        for stage in STAGES:
            for reason, total in ledger.reasons(stage, source).items():
                tokens = f"{total.tokens:,}" if total.tokens else ""
                rows.append((stage, source, reason, f"{total.documents:,}", f"{total.bytes / 1e6:.2f}", tokens))
    return rows
