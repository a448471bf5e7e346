"""Phase 5: a task drops the duplicates and what is in an evaluation set, redacts the rest, and sorts it into groups.

The journey of a document: not dropped by `exact` or `near`? -> not contaminated? -> secrets and personal data replaced
-> written to `clean/` with the hash that decides whether it is held out. A few documents of every group go to
`samples/`, for the tokenizer. What may be held out leaves its windows, which `overlap` looks for in training.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xxhash

from data_pipeline import languages
from data_pipeline.ledger import Ledger
from data_pipeline.prepare import split
from data_pipeline.prepare.dedup import IDENTICAL, SAME_BUT_FOR_DETAILS
from data_pipeline.prepare.groups import name_clash
from data_pipeline.prepare.job import Job
from data_pipeline.prepare.overlap import window_hashes
from data_pipeline.prepare.phases import near
from data_pipeline.prepare.redact import redact
from data_pipeline.prepare.workspace import DocumentWriter, DroppedWriter, StoredDocument

_DROPPED = {
    near.IDENTICAL: ("duplicate", IDENTICAL),
    near.SAME_BUT_FOR_DETAILS: ("duplicate", SAME_BUT_FOR_DETAILS),
    near.NEAR_DUPLICATE: ("near_duplicate", "shares most of its text with another document"),
}


def run(job: Job, task: int) -> None:
    """Clean the documents that part `task` of `read` has kept."""
    workspace = job.workspace
    cleaner = _Cleaner(job, task)
    with (
        workspace.write_documents("clean", task) as documents,
        workspace.write_documents("samples", task) as samples,
        workspace.write_dropped("clean", task) as dropped,
    ):
        for document, verdict in zip(
            workspace.read_documents("documents", task), near.verdicts(job, task).tolist(), strict=True
        ):
            cleaner.take(document, verdict, documents, samples, dropped)
    cleaner.save()
    workspace.save_ledger("clean", task, cleaner.ledger)


@dataclass(slots=True)
class _Members:
    """What a task has of a future source of the corpus: of one language, or of one collection of text.

    hashes, sizes: split hash and bytes of its documents.
    """

    kind: str
    language: str
    hashes: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    sampled_bytes: int = 0


class _Cleaner:
    def __init__(self, job: Job, task: int) -> None:
        self.job, self.task, self.config = job, task, job.config
        self.ledger, self.meter = Ledger(), job.meter("clean", task)
        self.contamination = job.contamination()
        self.members: dict[str, _Members] = {}
        digests = job.workspace.load_array("documents", task, "content")
        self.digests = np.sort(digests, order="index")[["high", "low"]].tolist()
        self.index = -1

    def take(
        self,
        document: StoredDocument,
        verdict: int,
        documents: DocumentWriter,
        samples: DocumentWriter,
        dropped: DroppedWriter,
    ) -> None:
        """Drop, or change and write, the next document."""
        self.index += 1
        num_bytes = len(document.text.encode())
        self.meter.add(num_bytes)
        row = {"source": document.source, "language": document.language}
        stage, reason = self._objection(document.text, verdict)
        if stage:
            self.ledger.add(stage, reason=reason, num_bytes=num_bytes, **row)
            dropped.add(document, stage, reason)
            return
        if self.config.redact:
            self._redact(document, num_bytes, row, dropped)
        document.split_hash = self._split_hash(document)
        documents.add(document)
        self._count(document, len(document.text.encode()), samples)

    def _objection(self, text: str, verdict: int) -> tuple[str, str]:
        if verdict != near.KEPT:
            return _DROPPED[verdict]
        reason = None if self.contamination is None else self.contamination.reason(text)
        return ("contaminated", reason) if reason else ("", "")

    def _redact(self, document: StoredDocument, num_bytes: int, row: dict[str, str], dropped: DroppedWriter) -> None:
        redacted = redact(document.text)
        if not redacted.counts:
            return
        document.text = redacted.text
        removed = num_bytes - len(redacted.text.encode())
        reason = ", ".join(sorted(redacted.counts))
        self.ledger.add("redacted", reason=reason, num_bytes=removed, **row)
        dropped.add(document, "redacted", ", ".join(f"{n} {kind}" for kind, n in sorted(redacted.counts.items())))

    def _split_hash(self, document: StoredDocument) -> int:
        """One hash for all files of a repository: it is held out as a whole."""
        if document.repository:
            return split.split_hash(xxhash.xxh3_128_intdigest(document.repository.encode()), self.config.seed)
        high, low = self.digests[self.index]
        return split.split_hash(high << 64 | low, self.config.seed)

    def _count(self, document: StoredDocument, num_bytes: int, samples: DocumentWriter) -> None:
        if document.group not in self.members:
            self.members[document.group] = _Members(document.kind, _language_of_group(document))
        members = self.members[document.group]
        if members.kind != document.kind:
            raise name_clash(document.group)
        members.hashes.append(document.split_hash)
        members.sizes.append(num_bytes)
        if members.sampled_bytes * self.config.tasks < self.config.tokenizer_sample_bytes:
            members.sampled_bytes += num_bytes
            samples.add(document)

    def save(self) -> None:
        """Groups, and what of them may be held out."""
        self.meter.finish()
        groups: list[dict[str, Any]] = []
        lows = {}
        for name, members in self.members.items():
            lows[name] = low = split.lowest(
                np.array(members.hashes, dtype=np.uint64), np.array(members.sizes, dtype=np.int64),
                self.config.heldout_fraction, self.config.min_heldout_documents,
            )  # fmt: skip
            groups.append({
                "name": name, "kind": members.kind, "language": members.language,
                "documents": len(members.sizes), "num_bytes": sum(members.sizes),
                "hashes": low.hashes.tolist(), "sizes": low.sizes.tolist(), "bound": low.bound,
            })  # fmt: skip
        self.job.workspace.save_json("clean", self.task, groups)
        self._save_windows(lows)

    def _save_windows(self, lows: dict[str, split.LowHashes]) -> None:
        candidates = defaultdict(list)
        for document in self.job.workspace.read_documents("clean", self.task):
            if document.split_hash < lows[document.group].bound:
                candidates["group"].append(document.group)
                candidates["hash"].append(document.split_hash)
                candidates["windows"].append(window_hashes(document.text))
        windows = candidates["windows"]
        self.job.workspace.save_json(
            "windows", self.task,
            {"group": candidates["group"], "hash": candidates["hash"], "sizes": [len(own) for own in windows]},
        )  # fmt: skip
        joined = np.concatenate([*windows, np.empty(0, dtype=np.uint64)])
        self.job.workspace.save_array("windows", self.task, "windows", joined)


def _language_of_group(document: StoredDocument) -> str:
    if document.repository:
        return "Repositories"
    if document.kind == "text":
        return document.group
    # A language manifest may count TSX as TypeScript: the group is the one that it is counted as.
    return languages.find_language(document.group) or document.language
