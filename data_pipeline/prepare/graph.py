"""The preparation graph: its phases in order, and how a build goes through them.

    read        tasks     sources -> documents that pass the filters, with their hashes
    exact       tasks     equal hashes -> duplicates
    near        bands     equal MinHash bands -> chains
    clusters    1         chains -> near duplicates
    clean       tasks     drop duplicates and contaminated documents, redact, group
    heldout     1         which documents are held out
    overlap     tasks     what training shares with them
    vocabulary  1         overlapping ones go back; the tokenizer
    tokenise    tasks     documents -> shards
    finish      1         ledger, manifest

Every phase is file in, file out (workspace.py), so its tasks may run anywhere that sees the folder, and in any order.
The result depends on the options and on `tasks`, not on the executor, the number of workers, or kills.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from data_pipeline.errors import DataError
from data_pipeline.prepare.executors import Phase, connected, run_phase, submit_phases, tasks_done
from data_pipeline.prepare.job import Job
from data_pipeline.prepare.phases import clean, exact, finish, heldout, near, read, tokenise, vocabulary

Progress = Callable[[str], None]
_REPORT_SECONDS = 5.0
_SPEAKING_SHARE = 0.02  # less of the work says nothing about the rest


def _tasks(job: Job) -> int:
    return job.config.tasks


def _one(job: Job) -> int:
    return 1


PHASES = (
    Phase("read", read.run, _tasks),
    Phase("exact", exact.run, _tasks),
    Phase("near", near.run, near.num_tasks),
    Phase("clusters", near.run_clusters, _one),
    Phase("clean", clean.run, _tasks),
    Phase("heldout", heldout.run, _one),
    Phase("overlap", heldout.run_overlap, _tasks),
    Phase("vocabulary", vocabulary.run, _one),
    Phase("tokenise", tokenise.run, _tasks),
    Phase("finish", finish.run, _one),
)


def phases_of(job: Job) -> list[Phase]:
    """The phases that have something to do."""
    return [phase for phase in PHASES if phase.num_tasks(job)]


def run(job: Job, progress: Progress) -> None:
    """Go through the graph and wait. Raises the DataError of the first task that has one."""
    with connected(job.config.executor):
        for phase in phases_of(job):
            began, before = time.monotonic(), tasks_done(job, phase)
            with _reporting(job, phase, progress):
                run_phase(job, phase)
            after = f", {before} of its {phase.num_tasks(job)} tasks were done before" if before else ""
            seconds = time.monotonic() - began
            if seconds >= 1:
                progress(f"{phase.name}: {seconds:.0f} s{after}")


def submit(job: Job) -> list[str]:
    """Submit the phases that are not done to SLURM. Returns their job ids."""
    return submit_phases(job, phases_of(job))


def state(job: Job) -> list[tuple[str, int, int]]:
    """(phase, tasks done, tasks) of every phase, for a build that runs elsewhere."""
    return [(phase.name, tasks_done(job, phase), phase.num_tasks(job)) for phase in phases_of(job)]


@contextmanager
def _reporting(job: Job, phase: Phase, progress: Progress) -> Iterator[None]:
    """Say every few seconds how far the tasks of a phase are, and how long the rest will take."""
    finished = threading.Event()
    thread = threading.Thread(target=_report, args=(job, phase, progress, finished), daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()


def _report(job: Job, phase: Phase, progress: Progress, finished: threading.Event) -> None:
    began, first = time.monotonic(), job.workspace.progress(phase.name)
    total = _total_bytes(job, phase)
    while not finished.wait(_REPORT_SECONDS):
        done = job.workspace.progress(phase.name)
        if not done:
            continue
        line = f"{phase.name}: {done / 1e6:.1f}"
        if total and done - first > _SPEAKING_SHARE * total:
            left = (time.monotonic() - began) * (total - done) / (done - first)
            progress(f"{line} of {total / 1e6:.1f} MB, {max(left, 0):.0f} s left")
        elif not total:
            progress(f"{line} MB, {tasks_done(job, phase)} of {phase.num_tasks(job)} tasks done")


def _total_bytes(job: Job, phase: Phase) -> int:
    """Bytes that the tasks of a phase have before them; 0 when nobody knows."""
    config = job.config
    if phase.name == "read":
        caps = [config.max_bytes_per_side] * 2 if config.max_bytes_per_side else []
        caps = caps or [source.max_bytes for source in config.sources]
        return sum(cap or 0 for cap in caps) if all(caps) else 0
    if phase.name not in ("clean", "overlap", "tokenise"):
        return 0
    return sum(job.workspace.load_json("documents", task)["bytes"] for task in range(config.tasks))


def first_error(job: Job) -> DataError | None:
    """The first error that a task of a build elsewhere has recorded."""
    errors = job.workspace.errors()
    return DataError(errors[0]) if errors else None
