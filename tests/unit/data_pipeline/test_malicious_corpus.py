"""Corpora made to do harm, with hashes that fit: one line, nothing outside read, nothing waited for."""

import json
import os

import pytest
import xxhash

from data_pipeline import manifest as manifest_module
from data_pipeline.errors import DataError
from data_pipeline.manifest import Corpus, Manifest, _content_hash
from data_pipeline.shards import _HEADER, CHECKSUM_BYTES, ShardReader
from tests.unit.cli.conftest import make_corpus
from tests.unit.data_pipeline.test_shards import write


def forge(directory, edit):
    """Change the manifest and make its hash fit again, as somebody who means harm would."""
    path = directory / "manifest.json"
    content = json.loads(path.read_text())
    edit(content)
    body = {key: value for key, value in content.items() if key not in ("format", "version", "manifest_hash")}
    path.write_text(json.dumps({**content, "manifest_hash": _content_hash(body)}))


@pytest.fixture
def corpus(tmp_path):
    return make_corpus(tmp_path / "corpus")


def train_of(content):
    return content["sources"][0]["train"]


@pytest.mark.parametrize(
    "edit",
    [
        lambda c: c["sources"][0].pop("train"),
        lambda c: c["sources"][0].pop("kind"),
        lambda c: c.update(sources=7),
        lambda c: c.update(sources=[None]),
        lambda c: c.update(vocab_size="many"),
        lambda c: c.update(more=1),
        lambda c: c["sources"][0].update(name=["x"]),
        lambda c: train_of(c)["shards"][0].update(file=3),
        lambda c: train_of(c)["shards"][0].update(more=1),
        lambda c: train_of(c)["shards"][0].update(num_tokens="1"),
        lambda c: train_of(c)["shards"][0].update(num_tokens=-1),
        lambda c: train_of(c)["shards"][0].update(num_tokens=1.5),
        lambda c: train_of(c).update(tokens=2**70),
        lambda c: train_of(c)["shards"][0].update(file="../../etc/passwd"),
    ],
)
def test_manifest_that_lies(corpus, edit):
    Corpus.open(corpus)
    forge(corpus, edit)
    with pytest.raises(DataError, match=r"manifest\.json") as raised:
        Corpus.open(corpus)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("file", ["manifest.json", "tokenizer.json"])
@pytest.mark.parametrize("text", ["[" * 100_000 + "]" * 100_000, "9" * 10_000, '{"a":' * 100_000 + "1" + "}" * 100_000])
def test_hard_to_parse_json(corpus, file, text):
    (corpus / file).write_text(text)
    with pytest.raises(DataError, match=file):
        Corpus.open(corpus)


@pytest.mark.parametrize("file", ["manifest.json", "tokenizer.json"])
def test_files_beyond_the_limit_are_refused_unread(corpus, file, monkeypatch):
    monkeypatch.setattr(manifest_module, "MAX_JSON_BYTES", 10_000)
    Corpus.open(corpus)
    with (corpus / file).open("r+b") as sparse:
        sparse.truncate(2**40)
    with pytest.raises(DataError, match="at most 10000 bytes"):
        Corpus.open(corpus)


def test_pipes_are_not_waited_for(corpus, tmp_path):
    (corpus / "tokenizer.json").unlink()
    os.mkfifo(corpus / "tokenizer.json")
    with pytest.raises(DataError, match="regular file"):
        Corpus.open(corpus)
    os.mkfifo(tmp_path / "a.tokens")
    with pytest.raises(DataError, match="no regular file"):
        ShardReader(tmp_path / "a.tokens")
    (corpus / "manifest.json").unlink()
    os.mkfifo(corpus / "manifest.json")
    with pytest.raises(DataError, match="regular file"):
        Manifest.load(corpus)


@pytest.mark.parametrize("tokens", [2**40, 2**63, 2**64 - 1])
@pytest.mark.parametrize("block", [1, 2**63])
def test_shard_whose_header_lies_about_its_length(tmp_path, tokens, block):
    path = tmp_path / "a.tokens"
    write(path)
    fields = list(_HEADER.unpack(path.read_bytes()[: _HEADER.size]))
    fields[3], fields[4] = tokens, block
    head = _HEADER.pack(*fields)[:-CHECKSUM_BYTES]
    head += xxhash.xxh3_64_intdigest(head).to_bytes(8, "little")
    with path.open("r+b") as file:
        file.write(head)
    with pytest.raises(DataError, match="bytes long, should be"):
        ShardReader(path)
