"""A folder to work in, a corpus that opens, workers that only note with which configuration they were started."""

import hashlib
import sys
from pathlib import Path

import pytest

from data_pipeline.manifest import Manifest, SourceInfo, SplitInfo, canonical_json_hash
from data_pipeline.shards import ShardInfo
from loopcoder_train.cli.main import main
from loopcoder_train.config.io import read_run_config


def make_corpus(directory: Path, vocab_size: int = 4096, code: tuple[str, ...] = ("code",)) -> Path:
    """A corpus by its manifest, enough for `Corpus.open` and any mixture; its shards do not exist.

    code: the names of its code sources.
    """
    directory.mkdir(parents=True)
    tokenizer = b"{}"
    (directory / "tokenizer.json").write_bytes(tokenizer)
    plenty = 10**14

    def source(name: str, kind: str) -> SourceInfo:
        shard = ShardInfo(file=f"shards/{name}.tokens", num_tokens=plenty, checksum="0" * 16)
        return SourceInfo(name=name, kind=kind, language=name, train=SplitInfo(tokens=plenty, shards=[shard]))

    Manifest(
        sources=[source("text", "text"), *(source(name, "code") for name in code)],
        tokenizer_hash=canonical_json_hash(tokenizer, directory),
        tokenizer_file_sha256=hashlib.sha256(tokenizer).hexdigest(),
        vocab_size=vocab_size,
        end_of_document_id=0,
        dtype="uint16",
        block_tokens=4096,
    ).save(directory)
    return directory


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """An empty current folder with a corpus beside it."""
    make_corpus(tmp_path / "corpus")
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def started(monkeypatch):
    """Configurations with which workers would have been started; `started.codes` are returned one after the other."""

    class Started(list):
        codes: list = []  # noqa: RUF012 - one test, one instance

    runs = Started()

    def run_workers(run_yaml, nproc, max_restarts, log_dir, *, threads_per_worker=None, progress=None):
        config = read_run_config(run_yaml)
        assert nproc == config.parallel.world_size
        assert log_dir == run_yaml.parent / "logs"
        runs.append(config)
        return runs.codes.pop(0) if runs.codes else 0

    monkeypatch.setattr("launch.local.run_workers", run_workers)
    return runs


@pytest.fixture
def loopcoder(capfd):
    """Run the command in this process: `code, stdout, stderr = loopcoder("pretrain", ...)`."""

    def run(*arguments: str) -> tuple[int, str, str]:
        argv = list(sys.argv)
        capfd.readouterr()
        try:
            code = main(list(arguments))
        except SystemExit as stop:
            code = stop.code
        assert sys.argv == argv
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return run


QUICK = ("experiment=quickstart", "model=debug", "data.corpus_dir=../corpus")
