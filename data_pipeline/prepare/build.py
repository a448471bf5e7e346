"""`loopcoder data build`: sources -> a corpus folder that `Corpus.open` accepts.

The journey: a folder `<corpus_dir>.building` beside the corpus -> the phases of the graph (graph.py), the manifest last
-> one rename to `corpus_dir`. A build that is killed leaves nothing under `corpus_dir`; the next one with the same
configuration continues with the tasks that are not done. A corpus that is there already is used again if its
configuration is the same, and never replaced unless `overwrite` says so.
"""

import fcntl
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_pipeline.errors import DataError
from data_pipeline.manifest import MANIFEST_FILE, Corpus, Manifest
from data_pipeline.prepare import graph
from data_pipeline.prepare.build_config import BuildConfig, content_config
from data_pipeline.prepare.decontaminate import Contamination
from data_pipeline.prepare.executor_config import ExecutorKind
from data_pipeline.prepare.graph import Progress
from data_pipeline.prepare.job import Job
from data_pipeline.prepare.slurm import is_running, submit
from data_pipeline.prepare.workspace import BUILDING, Workspace
from data_pipeline.report.write import report_of_build

_LOCK_FILE = "lock"


def build_corpus(config: BuildConfig, progress: Progress = print) -> Manifest | None:
    """Build the corpus, or find it built. `progress` gets one line at a time.

    None when the build was left to SLURM: the same command again says how far it is, and finishes it.
    Raises DataError when a source is bad or empty, another corpus is in the way, or another build is running.
    """
    if not config.sources:
        raise DataError("sources: none given; add one, for example configs/data_build/default.yaml")
    final = Path(config.corpus_dir)
    existing = _existing(config, final)
    if existing is not None:
        progress(f"{final}: already built from the same configuration, used as it is (overwrite=true builds it again)")
        return existing
    began = time.monotonic()
    with _building_folder(final) as folder:
        job = Job(config, Workspace(folder))
        if is_running(job, progress):
            return None
        _prepare(job, progress)
        if config.executor.kind is ExecutorKind.slurm:
            submit(job, progress)
            return None
        graph.run(job, progress)
        shutil.rmtree(folder)
    for line in ("", *report_of_build(final), f"{final}: built in {time.monotonic() - began:.0f} s"):
        progress(line)
    return Corpus.open(final).manifest


def _existing(config: BuildConfig, final: Path) -> Manifest | None:
    if config.overwrite or not final.exists():
        return None
    if not (final / MANIFEST_FILE).is_file():
        if final.is_dir() and not any(final.iterdir()):
            return None
        raise DataError(f"corpus_dir={final}: exists and is no corpus; name another folder, or overwrite=true")
    manifest = Corpus.open(final).manifest
    wanted = content_config(config)
    differing = sorted(key for key in wanted if manifest.build_config.get(key) != wanted[key])
    if differing:
        raise DataError(
            f"corpus_dir={final}: holds a corpus with other {', '.join(differing)}; "
            "name another folder, or overwrite=true"
        )
    return manifest


@contextmanager
def _building_folder(final: Path) -> Iterator[Path]:
    """The folder beside `final`, locked. It stays when the build fails, for the next one to continue."""
    folder = final.absolute().with_name(final.name + BUILDING)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / _LOCK_FILE).open("w")
    except OSError as error:
        raise DataError(f"corpus_dir={final}: cannot be written ({error.strerror}); name another folder") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DataError(f"{folder}: another build is running there; wait for it, or name another folder") from error
        yield folder


def _prepare(job: Job, progress: Progress) -> None:
    """Keep what a build from the same options has left; anything else makes way."""
    folder, plan = job.workspace.folder, content_config(job.config)
    if job.workspace.load_plan() == plan:
        job.workspace.forget_errors()
        progress(f"{folder}: an interrupted build from the same options is continued")
        return
    for entry in folder.iterdir():
        if entry.name != _LOCK_FILE:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    job.workspace.corpus.mkdir()
    if job.config.evaluation_sets:
        index = Contamination.from_files(job.config.evaluation_sets)
        index.save(job.workspace.path("contamination", 0, "npz"))
    job.workspace.save_plan(plan)
