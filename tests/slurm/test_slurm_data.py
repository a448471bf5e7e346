"""A corpus built by job arrays on a real SLURM is the one that this machine builds."""

import time

import pytest

from data_pipeline.manifest import Manifest
from tests.integration.conftest import ROOT
from tests.slurm.cluster import wait_until

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]

SOURCES = (
    f"sources=[{{name: own-code, kind: folder, path: {ROOT / 'loopcoder_train'}}},"
    f" {{name: own-text, kind: folder, path: {ROOT / 'docs'}, language: Text}}]"
)
OPTIONS = ("vocab_size=512", "min_source_bytes=1000", "tasks=2", "near_dedup.bands=4")


def build(jobs, corpus_dir, *options):
    return jobs.loopcoder("data", "build", f"corpus_dir={corpus_dir}", SOURCES, *OPTIONS, *options)


def test_job_arrays_build_the_same_corpus(jobs, tmp_path):
    on_cluster = ("executor.kind=slurm", "executor.partition=cpu", "executor.time_limit='10'")
    assert build(jobs, tmp_path / "here").code == 0
    submitted = build(jobs, tmp_path / "there", *on_cluster)
    assert submitted.code == 0, submitted.stderr
    assert "submitted 10 job arrays" in submitted.stdout
    looked = build(jobs, tmp_path / "there", *on_cluster)
    assert looked.code == 0 and "of 2 tasks done" in looked.stdout
    finished = (tmp_path / "there" / "manifest.json").is_file
    wait_until(finished, 240, "the corpus is there", required=False)
    assert finished(), logs(tmp_path / "there.building")
    manifests = [Manifest.load(tmp_path / name) for name in ("here", "there")]
    assert manifests[0].manifest_hash == manifests[1].manifest_hash
    again = build(jobs, tmp_path / "there", *on_cluster)
    assert again.code == 0 and "already built" in again.stdout


@pytest.mark.faults
def test_a_task_that_fails_ends_the_build_and_is_named(jobs, tmp_path):
    gone = "sources=[{name: gone, kind: folder, path: /nowhere}]"
    on_cluster = ("executor.kind=slurm", "executor.partition=cpu", gone)
    assert build(jobs, tmp_path / "there", *on_cluster).code == 0
    deadline = time.monotonic() + 120
    while (outcome := build(jobs, tmp_path / "there", *on_cluster)).code == 0:
        assert time.monotonic() < deadline, outcome.stdout
        time.sleep(3)
    assert outcome.code == 2
    assert "folder /nowhere does not exist" in outcome.stderr and outcome.stderr.count("\n") == 1


def logs(folder):
    """The ends of all logs of a build."""
    return "\n".join(path.read_text(errors="replace")[-2000:] for path in sorted(folder.rglob("*.out")))
