"""Phases 6 and 7: which documents are held out, and what of them stands in training documents as well.

`heldout`, a single task: groups and hashes of all tasks -> the bound of every group -> the windows of the candidates.
`overlap`, a task each: the training documents of a task of `clean` mark the windows that they share (overlap.py).
"""

from dataclasses import asdict
from typing import Any

import numpy as np

from data_pipeline.ledger import Ledger
from data_pipeline.prepare import split
from data_pipeline.prepare.groups import Group, in_order, name_clash
from data_pipeline.prepare.job import Job
from data_pipeline.prepare.overlap import mark, window_hashes


def run(job: Job, task: int) -> None:
    """Set the bounds; a single task."""
    parts = [job.workspace.load_json("clean", part) for part in range(job.config.tasks)]
    ledger = Ledger()
    groups = [_group(job, ledger, name, parts) for name in sorted({own["name"] for part in parts for own in part})]
    groups = in_order(groups)
    job.workspace.save_json("heldout", task, [asdict(group) for group in groups])
    _save_candidates(job, {group.name: group for group in groups})
    job.workspace.save_ledger("heldout", task, ledger)


def _group(job: Job, ledger: Ledger, name: str, parts: list[list[dict[str, Any]]]) -> Group:
    own = [entry for part in parts for entry in part if entry["name"] == name]
    if len({entry["kind"] for entry in own}) > 1:
        raise name_clash(name)
    config = job.config
    documents, num_bytes = sum(entry["documents"] for entry in own), sum(entry["num_bytes"] for entry in own)
    lows = [
        split.LowHashes(
            np.array(entry["hashes"], dtype=np.uint64), np.array(entry["sizes"], dtype=np.int64), entry["bound"]
        )
        for entry in own
    ]
    bound, is_less = split.threshold(lows, documents, num_bytes, config.heldout_fraction, config.min_heldout_documents)
    if is_less:
        ledger.note(f"{name}: fewer documents are held out than asked for; some tasks have unusually large ones")
    return Group(
        name=name,
        kind=own[0]["kind"],
        language=own[0]["language"],
        documents=documents,
        num_bytes=num_bytes,
        bound=bound,
    )


def _save_candidates(job: Job, groups: dict[str, Group]) -> None:
    """Windows of the held-out documents of all tasks, one after the other, and all of them sorted, each once."""
    kept: list[np.ndarray] = []
    owners: list[tuple[str, int]] = []
    for part in range(job.config.tasks):
        facts = job.workspace.load_json("windows", part)
        windows = job.workspace.load_array("windows", part, "windows")
        ends = np.cumsum([0, *facts["sizes"]]).tolist()
        for number, (group, value) in enumerate(zip(facts["group"], facts["hash"], strict=True)):
            if value < groups[group].bound:
                owners.append((group, value))
                kept.append(np.array(windows[ends[number] : ends[number + 1]]))
    joined = np.concatenate([*kept, np.empty(0, dtype=np.uint64)])
    job.workspace.save_array("heldout", 0, "windows", joined)
    job.workspace.save_array("heldout", 0, "known", np.unique(joined))
    job.workspace.save_json("candidates", 0, {"owners": owners, "sizes": [len(own) for own in kept]})


def load_groups(job: Job, phase: str) -> dict[str, Group]:
    """The groups as `heldout` or `vocabulary` left them, by name, in order."""
    return {entry["name"]: Group(**entry) for entry in job.workspace.load_json(phase, 0)}


def run_overlap(job: Job, task: int) -> None:
    """Mark what the training documents of one task share with the candidates."""
    groups, known = load_groups(job, "heldout"), job.workspace.load_array("heldout", 0, "known")
    marked = np.zeros(len(known), dtype=bool)
    meter = job.meter("overlap", task)
    for document in job.workspace.read_documents("clean", task):
        meter.add(len(document.text.encode()))
        if len(known) and not groups[document.group].is_heldout(document):
            mark(known, marked, window_hashes(document.text))
    meter.finish()
    job.workspace.save_array("overlap", task, "marked", marked)
