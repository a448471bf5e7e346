"""Phase 8, a single task: held-out documents that overlap training go back, the tokenizer is trained or imported.

The tokenizer sees training documents only: half the bytes from each side, from every group by its size, as
`samples/` has them.
"""

from collections.abc import Iterator
from dataclasses import asdict

import numpy as np

from data_pipeline.ledger import Ledger
from data_pipeline.manifest import TOKENIZER_FILE, write_durably
from data_pipeline.mixture import KINDS
from data_pipeline.prepare.groups import Group
from data_pipeline.prepare.job import Job
from data_pipeline.prepare.overlap import overlapping
from data_pipeline.prepare.phases.heldout import load_groups
from data_pipeline.tokenizer import Tokenizer, train_tokenizer


def run(job: Job, task: int) -> None:
    """Return what overlaps, then the tokenizer; a single task."""
    ledger = Ledger()
    groups = load_groups(job, "heldout")
    _return_overlapping(job, groups, ledger)
    job.workspace.save_json("vocabulary", task, [asdict(group) for group in groups.values()])
    tokenizer = _tokenizer(job, groups)
    if tokenizer.vocab_size < job.config.vocab_size and not job.config.tokenizer_path:
        ledger.note(
            f"tokenizer: {tokenizer.vocab_size} tokens, the sample gave no more (asked for {job.config.vocab_size})"
        )
    job.workspace.corpus.mkdir(exist_ok=True)
    write_durably(job.workspace.corpus / TOKENIZER_FILE, tokenizer.to_json())
    job.workspace.save_ledger("vocabulary", task, ledger)


def _return_overlapping(job: Job, groups: dict[str, Group], ledger: Ledger) -> None:
    workspace, max_overlap = job.workspace, job.config.max_heldout_overlap
    candidates = workspace.load_json("candidates", 0)
    if not candidates["owners"] or max_overlap >= 1:
        return
    known, joined = (workspace.load_array("heldout", 0, name) for name in ("known", "windows"))
    marked = np.zeros(len(known), dtype=bool)
    for part in range(job.config.tasks):
        marked |= workspace.load_array("overlap", part, "marked")
    windows = np.split(joined, np.cumsum(candidates["sizes"])[:-1])
    over = overlapping(known, marked, windows, max_overlap)
    for number in over:
        name, value = candidates["owners"][number]
        groups[name].returned.append(value)
    ledger.note(
        f"held out: {len(over)} of {len(windows)} candidates had more than {max_overlap:.0%} of their "
        "text in training documents and went back to training"
    )


def _tokenizer(job: Job, groups: dict[str, Group]) -> Tokenizer:
    config = job.config
    if config.tokenizer_path:
        return Tokenizer.load(config.tokenizer_path, config.end_of_document_token)
    return train_tokenizer(sample(job, groups), config.vocab_size)


def sample(job: Job, groups: dict[str, Group]) -> Iterator[str]:
    """Training documents: every group up to its share of half of `tokenizer_sample_bytes`."""
    shares = _shares(job, groups)
    taken = dict.fromkeys(groups, 0)
    for part in range(job.config.tasks):
        for document in job.workspace.read_documents("samples", part):
            group = groups[document.group]
            budget = job.config.tokenizer_sample_bytes / 2 * shares[group.name]
            # A part of the budget for each task: all of them are heard.
            if taken[group.name] >= budget * (part + 1) / job.config.tasks or group.is_heldout(document):
                continue
            taken[group.name] += len(document.text.encode())
            yield document.text


def _shares(job: Job, groups: dict[str, Group]) -> dict[str, float]:
    """Every group's share of its side: by size, but on the code side as the language manifest has it."""
    given: dict[str, float] = {}
    left = {"text": 1.0, "code": 1.0}
    code = [group.name for group in groups.values() if group.kind == "code"]
    if (manifest := job.config.load_language_manifest()) is not None and code:
        planned = manifest.shares_of(code)
        given = {name: float(share) for name, share in planned.shares.items()}
        left["code"] = float(planned.others)
    rest = [group for group in groups.values() if group.name not in given]
    side_bytes = {kind: sum(group.num_bytes for group in rest if group.kind == kind) for kind in KINDS}
    return given | {group.name: left[group.kind] * group.num_bytes / side_bytes[group.kind] for group in rest}
