"""The groups of a build: what all tasks of `clean` found together, and which documents are held out.

Written once by `heldout` (bounds) and once more by `vocabulary` (what goes back to training); read by every task after.
"""

from dataclasses import dataclass, field

from data_pipeline.errors import DataError
from data_pipeline.mixture import KINDS
from data_pipeline.prepare.workspace import StoredDocument


@dataclass(kw_only=True, slots=True)
class Group:
    """A future source of the corpus. A document with a hash below `bound` is held out unless it is in `returned`."""

    name: str
    kind: str
    language: str
    documents: int = 0
    num_bytes: int = 0
    bound: int = 0
    returned: list[int] = field(default_factory=list)

    def is_heldout(self, document: StoredDocument) -> bool:
        """Whether a document of this group is held out."""
        return document.split_hash < self.bound and document.split_hash not in self.returned


@dataclass(kw_only=True, slots=True)
class PlannedSource:
    """A source of the manifest before it is written: one group, or all small ones of a side."""

    name: str
    kind: str
    language: str
    groups: list[str]


def name_clash(name: str) -> DataError:
    """The error for a group that would hold both text and code."""
    return DataError(f"sources: a text source would be named like the language {name!r}; rename it")


def in_order(groups: list[Group]) -> list[Group]:
    """Text first, then by name. Raises DataError when nothing is left."""
    if not groups:
        raise DataError("build: no document is left after filters and deduplication; add a source, or relax them")
    return sorted(groups, key=lambda group: (KINDS.index(group.kind), group.name))


def plan_sources(groups: list[Group], min_source_bytes: int) -> tuple[list[PlannedSource], list[str]]:
    """Groups of at least `min_source_bytes` stand alone; two or more smaller ones of a side are joined.

    Returns (sources, notes that say which groups were joined).
    """
    planned, notes = [], []
    for kind in KINDS:
        members = [group for group in groups if group.kind == kind]
        small = [group for group in members if group.num_bytes < min_source_bytes]
        if len(small) < 2:
            small = []
        planned += [
            PlannedSource(name=group.name, kind=kind, language=group.language, groups=[group.name])
            for group in members
            if group not in small
        ]
        if small:
            name = f"{kind}-other"
            planned.append(
                PlannedSource(name=name, kind=kind, language="Others", groups=[group.name for group in small])
            )
            notes.append(
                f"{name}: {len(small)} groups of fewer than {min_source_bytes:,} bytes each: "
                + ", ".join(group.name for group in small)
            )
    return planned, notes
