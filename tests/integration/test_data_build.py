"""`loopcoder data build` in real processes: killed at any moment, it continues to the very same corpus."""

import os
import random
import signal
import subprocess
import time

import pytest

from data_pipeline.manifest import Corpus, Manifest
from tests.integration.conftest import ROOT, command

SOURCES = (
    f"sources=[{{name: own-code, kind: folder, path: {ROOT / 'loopcoder_train'}}},"
    f" {{name: own-text, kind: folder, path: {ROOT / 'docs'}, language: Text}}]"
)
OPTIONS = (SOURCES, "vocab_size=512", "min_source_bytes=1000", "tasks=3", "near_dedup.bands=3", "executor.workers=2")
KILLS = 4


def build(corpus_dir, *options) -> subprocess.Popen:
    arguments = command("data", "build", f"corpus_dir={corpus_dir}", *OPTIONS, *options)
    return subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "corpus"
    began = time.monotonic()
    process = build(folder)
    assert process.wait() == 0, process.stderr.read()
    return folder, time.monotonic() - began


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.faults)])
def test_killed_at_random_moments_it_continues_to_the_same_corpus(undisturbed, tmp_path, seed):
    expected, seconds = undisturbed
    generator = random.Random(seed)
    for _ in range(KILLS):
        process = build(tmp_path / "corpus")
        try:
            process.wait(timeout=generator.uniform(0.3, 0.9) * seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            assert (tmp_path / "corpus").exists() == (tmp_path / "corpus" / "manifest.json").is_file()
    process = build(tmp_path / "corpus")
    output = process.communicate()
    assert process.returncode == 0, output
    assert Manifest.load(tmp_path / "corpus").manifest_hash == Manifest.load(expected).manifest_hash
    assert (tmp_path / "corpus" / "ledger.json").read_bytes() == (expected / "ledger.json").read_bytes()
    assert not (tmp_path / "corpus.building").exists()


def test_every_shard_of_a_built_corpus_is_whole(undisturbed):
    corpus = Corpus.open(undisturbed[0])
    for source in range(len(corpus.manifest.sources)):
        tokens = corpus.tokens(source)
        assert len(tokens.read(0, tokens.num_tokens)) == tokens.num_tokens
    assert any((undisturbed[0] / "dropped").iterdir())


@pytest.mark.faults
def test_ray_builds_the_same_corpus(undisturbed, tmp_path):
    pytest.importorskip("ray")
    process = build(tmp_path / "corpus", "executor.kind=ray")
    output = process.communicate()
    assert process.returncode == 0, output
    assert Manifest.load(tmp_path / "corpus").manifest_hash == Manifest.load(undisturbed[0]).manifest_hash
    assert "WARNING" not in output[1]
