"""Phases 3 and 4: near duplicates, band by band, then the clusters that the bands make together.

The journey: a `near` task has one band and one range of its hashes; it takes that slice from every task of `read`,
leaves out what `exact` dropped, and chains documents with equal hashes. `clusters`, a single task, joins the chains of
all bands: of every cluster the document with the lowest number is kept. Its memory holds the documents that share a
band with another one, about 200 bytes each, and no others.
"""

import numpy as np

from data_pipeline.prepare.job import Job
from data_pipeline.prepare.near_dedup import candidate_edges, clusters, merge_edges
from data_pipeline.prepare.phases.exact import hash_range


def num_tasks(job: Job) -> int:
    """One task a band and range of hashes; `near_hash_ranges` ranges."""
    hasher = job.config.min_hasher()
    return 0 if hasher is None else hasher.config.bands * job.config.near_hash_ranges


def run(job: Job, task: int) -> None:
    """Chain the documents of one band and range."""
    config, workspace, numbering = job.config, job.workspace, job.numbering()
    band, part = divmod(task, config.near_hash_ranges)
    hashes, numbers = [], []
    for reader in range(config.tasks):
        rows = workspace.load_array("documents", reader, "bands")[band]
        chosen = np.array(rows[hash_range(rows["hash"], part, config.near_hash_ranges)])
        chosen = chosen[exact_verdicts(job, reader)[chosen["index"]] == KEPT]
        hashes.append(chosen["hash"])
        numbers.append(numbering.of_task(reader)[chosen["index"]])
    joined = np.concatenate(numbers)
    edges = candidate_edges(np.concatenate(hashes))
    workspace.save_array("near", task, "edges", joined[edges])


def run_clusters(job: Job, task: int) -> None:
    """Join the edges of all bands; a single task."""
    edges = (job.workspace.load_array("near", part, "edges") for part in range(num_tasks(job)))
    members, roots = clusters(merge_edges(edges))
    job.workspace.save_array("clusters", task, "dropped", np.sort(members[members != roots]))


KEPT, IDENTICAL, SAME_BUT_FOR_DETAILS, NEAR_DUPLICATE = range(4)


def exact_verdicts(job: Job, task: int) -> np.ndarray:
    """What `exact` says of each document of a task [N] uint8: KEPT, IDENTICAL or SAME_BUT_FOR_DETAILS."""
    numbering = job.numbering()
    verdicts = np.zeros(sum(numbering.counts[task]), dtype=np.uint8)
    for part in range(job.config.tasks):
        dropped = job.workspace.load_array("exact", part, "dropped")
        identical = job.workspace.load_array("exact", part, "identical")
        numbering.mark(task, dropped, np.where(identical, IDENTICAL, SAME_BUT_FOR_DETAILS), verdicts)
    return verdicts


def verdicts(job: Job, task: int) -> np.ndarray:
    """What both searches say of each document of a task [N] uint8."""
    result = exact_verdicts(job, task)
    if num_tasks(job):
        dropped = job.workspace.load_array("clusters", 0, "dropped")
        job.numbering().mark(task, dropped, np.full(len(dropped), NEAR_DUPLICATE, dtype=np.uint8), result)
    return result
