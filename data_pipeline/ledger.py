"""Where every document went: documents, bytes and tokens per stage, reason, source and language.

The journey: each stage adds to a row when it takes, changes or drops a document. Stages: `read` (a document came out
of its source), `skipped` (never became one: binary, not UTF-8, too large ...), `capped` (the side was full),
`filtered`, `duplicate`, `near_duplicate`, `contaminated`, then `train` or `heldout`. Changes are counted beside these:
`redacted` documents with the bytes that they lost, `fim` (fill-in-the-middle) documents with their sentinels. Every
document that was read ends in exactly one row that is no change:

    read = capped + filtered + duplicate + near_duplicate + contaminated + train + heldout      (documents)

and with the bytes of `redacted` on the right the bytes agree too; `balance` checks both. Saved beside the manifest as
ledger.json.
"""

import json
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from data_pipeline.errors import DataError
from data_pipeline.manifest import LEDGER_FILE, write_durably

STAGES = (
    *("skipped", "read", "capped", "filtered", "duplicate", "near_duplicate", "contaminated", "redacted"),
    "fim",
    *("train", "heldout"),
)
"""In the order of the graph."""
CHANGES = ("redacted", "fim")
"""Stages that change a document and do not drop it; their tokens (sentinels) are counted with `train` too."""


@dataclass(kw_only=True, slots=True)
class LedgerRow:
    """Counts of one (stage, reason, source, group, language). `source`: of the build; `group`: of the manifest."""

    stage: str
    reason: str
    source: str
    group: str
    language: str
    documents: int = 0
    bytes: int = 0
    tokens: int = 0


class Ledger:
    """Rows of counts, and notes: sentences about what a count cannot say (a source that was not read to its end)."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str, str, str, str], LedgerRow] = {}
        self.notes: list[str] = []

    def add(
        self,
        stage: str,
        *,
        source: str,
        reason: str = "",
        group: str = "",
        language: str = "",
        documents: int = 1,
        num_bytes: int = 0,
        tokens: int = 0,
    ) -> None:
        """Add to a row; it is made on first use."""
        assert stage in STAGES, stage
        key = (stage, reason, source, group, language)
        if key not in self._rows:
            self._rows[key] = LedgerRow(stage=stage, reason=reason, source=source, group=group, language=language)
        row = self._rows[key]
        row.documents += documents
        row.bytes += num_bytes
        row.tokens += tokens

    def merge(self, other: "Ledger") -> None:
        """Add the rows and notes of another ledger."""
        for row in other.rows():
            self.add(
                row.stage, source=row.source, reason=row.reason, group=row.group, language=row.language,
                documents=row.documents, num_bytes=row.bytes, tokens=row.tokens,
            )  # fmt: skip
        for note in other.notes:
            self.note(note)

    def note(self, sentence: str) -> None:
        """Remember a sentence for the report, once."""
        if sentence not in self.notes:
            self.notes.append(sentence)

    def rows(self, stage: str | None = None, source: str | None = None) -> list[LedgerRow]:
        """Rows of a stage and source (None: all), sorted."""
        return [self._rows[key] for key in sorted(self._rows) if stage in (None, key[0]) and source in (None, key[2])]

    def total(self, stage: str, source: str | None = None) -> LedgerRow:
        """The sum over the rows of a stage."""
        total = LedgerRow(stage=stage, reason="", source=source or "", group="", language="")
        for row in self.rows(stage, source):
            total.documents += row.documents
            total.bytes += row.bytes
            total.tokens += row.tokens
        return total

    def reasons(self, stage: str, source: str | None = None) -> dict[str, LedgerRow]:
        """reason -> sums of a stage, most documents first."""
        sums: dict[str, LedgerRow] = {}
        for row in self.rows(stage, source):
            total = sums.setdefault(
                row.reason, LedgerRow(stage=stage, reason=row.reason, source="", group="", language="")
            )
            total.documents += row.documents
            total.bytes += row.bytes
            total.tokens += row.tokens
        return dict(sorted(sums.items(), key=lambda item: -item[1].documents))

    def balance(self) -> None:
        """DataError unless every document that was read is in exactly one later stage, source by source."""
        counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        for row in self.rows():
            if row.stage != "skipped":
                sign = 1 if row.stage == "read" else -1
                counts[row.source][0] += 0 if row.stage in CHANGES else sign * row.documents
                counts[row.source][1] += sign * row.bytes
        for source, (documents, size) in counts.items():
            if documents or size:
                raise DataError(
                    f"ledger: source {source!r}: {documents} documents ({size} bytes) are unaccounted for; "
                    "this is a defect of the build, please report it"
                )

    def save(self, directory: Path) -> None:
        """Write ledger.json durably."""
        content = {"rows": [asdict(row) for row in self.rows()], "notes": self.notes}
        write_durably(directory / LEDGER_FILE, json.dumps(content, indent=1, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read ledger.json. Raises DataError when it is missing or damaged."""
        path = directory / LEDGER_FILE
        try:
            content = json.loads(path.read_bytes())
            rows = [LedgerRow(**row) for row in content["rows"]]
            notes = list(content["notes"])
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}); build the corpus again") from error
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(f"{path}: damaged ({error}); build the corpus again") from error
        ledger = cls()
        ledger.notes = notes
        for row in rows:
            ledger._rows[row.stage, row.reason, row.source, row.group, row.language] = row
        return ledger
