"""A corpus behind a URL gives the tokens of the same one on a disk, or one clear error, whatever the network does."""

import hashlib
import os
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import fsspec
import numpy as np
import pytest
import xxhash

from data_pipeline import remote as remote_module
from data_pipeline.errors import DataError
from data_pipeline.loader import StreamLoader
from data_pipeline.manifest import Corpus, Manifest, SourceInfo, canonical_json_hash
from data_pipeline.quotas import quotas_for
from data_pipeline.reading import Reading
from data_pipeline.segments import one_segment
from data_pipeline.shards import ShardInfo, ShardWriter, token_dtype
from data_pipeline.stream import TokenStream
from tests.unit.data_pipeline import faulty_server as faults
from tests.unit.data_pipeline.conftest import TOKENIZER_JSON
from tests.unit.data_pipeline.faulty_server import serving

S, BLOCK, CHUNK = 20, 16, 256
POSITIONS = range(60)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(remote_module, "FIRST_PAUSE_SECONDS", 0.005)


@pytest.fixture
def server(small_corpus):
    with serving(small_corpus.directory.parent) as remote:
        yield remote


@pytest.fixture
def reading(tmp_path):
    return Reading(
        cache_dir=str(tmp_path / "cache"),
        cache_bytes=256 * CHUNK,
        chunk_bytes=CHUNK,
        read_timeout_seconds=60,
        attempt_timeout_seconds=30,
        read_threads=4,
    )


def with_(reading, **changes):
    values = {name: getattr(reading, name) for name in Reading.__dataclass_fields__}
    return Reading(**{**values, **changes})


def stream_of(corpus):
    plan = quotas_for(corpus.manifest, 10_000, sequence_length=S, shuffle_block_tokens=BLOCK, max_repeats=1e6)
    return TokenStream(corpus, plan.mixture(), S, seed=5, shuffle_block_tokens=BLOCK)


def tokens_of(corpus, positions=POSITIONS):
    batch = stream_of(corpus).read(positions)
    return batch.input_ids.tolist(), batch.labels.tolist(), batch.document_ids.tolist()


def shard_requests(server):
    return [(request.path, request.offset) for request in server.of_shards()]


def test_the_tokens_are_those_of_the_disk_and_come_from_the_cache_the_second_time(small_corpus, server, reading):
    expected = tokens_of(small_corpus)
    reading = with_(reading, cache_bytes=1 << 20)
    assert tokens_of(Corpus.open(f"{server.url}/corpus/", reading)) == expected
    seen = shard_requests(server)
    assert seen and len(seen) == len(set(seen)), "a chunk was fetched twice"
    assert tokens_of(Corpus.open(f"{server.url}/corpus", reading)) == expected
    assert shard_requests(server) == seen


def test_memory_and_file_urls(small_corpus, reading):
    files = fsspec.filesystem("memory")
    for path in small_corpus.directory.rglob("*"):
        if path.is_file():
            files.pipe_file(f"/corpus/{path.relative_to(small_corpus.directory)}", path.read_bytes())
    expected = tokens_of(small_corpus)
    assert tokens_of(Corpus.open("memory://corpus", reading)) == expected
    assert tokens_of(Corpus.open(f"file://{small_corpus.directory}")) == expected
    files.rm("/corpus", recursive=True)


@pytest.mark.parametrize(
    "fault",
    [faults.status(500), faults.status(503), faults.status(429), faults.truncated, faults.short, faults.wrong_bytes,
     faults.reset],
    ids=["500", "503", "429", "truncated", "short", "wrong-bytes", "reset"],
)  # fmt: skip
def test_what_passes_is_tried_again(small_corpus, server, reading, fault):
    server.fault = lambda request: fault if "/shards/" in request.path and request.earlier == 0 else None
    assert tokens_of(Corpus.open(f"{server.url}/corpus", reading)) == tokens_of(small_corpus)
    assert any(request.earlier for request in server.of_shards())


@pytest.mark.parametrize(("code", "said"), [(404, "restore the file"), (403, "credentials"), (400, "corpus_dir")])
def test_what_will_not_pass_is_not_tried_again(server, reading, code, said):
    corpus = Corpus.open(f"{server.url}/corpus", reading)
    server.fault = lambda request: faults.status(code)
    server.requests.clear()
    with pytest.raises(
        DataError, match=rf"^{server.url}/corpus/shards/\S+ bytes 0-\d+ cannot be read .*{said}"
    ) as error:
        tokens_of(corpus)
    assert str(code) in str(error.value) and "\n" not in str(error.value)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("fault", "cause"),
    [(faults.status(500), "HTTP status 500"), (faults.hanging, "no complete answer within"),
     (faults.trickling, "no complete answer within"), (faults.reset, "Disconnected|reset"),
     (faults.truncated, "payload|Payload")],
    ids=["500", "hanging", "trickling", "reset", "truncated"],
)  # fmt: skip
def test_what_does_not_pass_is_an_error_with_url_bytes_attempts_and_cause(server, reading, fault, cause):
    corpus = Corpus.open(f"{server.url}/corpus", with_(reading, read_timeout_seconds=0.6, attempt_timeout_seconds=0.15))
    server.fault = lambda request: fault
    server.requests.clear()
    with pytest.raises(
        DataError, match=rf"/corpus/shards/\S+: bytes 0-\d+ cannot be read: (\d+) attempts in .*({cause})"
    ):
        tokens_of(corpus)
    assert len(server.requests) > 1


def test_an_attempt_that_had_no_time_left_does_not_hide_the_cause(server, reading):
    """Connections are reset for a while; then an attempt gets the rest of the read's time, and no answer."""
    remote = remote_module.Remote(server.url, with_(reading, read_timeout_seconds=1.5, attempt_timeout_seconds=60))
    silent = time.monotonic() + 0.3
    server.fault = lambda request: faults.reset if time.monotonic() < silent else faults.hanging
    with pytest.raises(DataError, match=r"attempts in .*, the last one: .*(Disconnected|reset)"):
        remote.read("corpus/manifest.json", 7, 100)


def test_an_answer_that_is_always_short_is_an_error_after_a_few_attempts(server, reading):
    remote = remote_module.Remote(server.url, reading)
    whole = (server.folder / "corpus" / "manifest.json").read_bytes()
    server.fault = lambda request: faults.short if request.earlier == 0 else None
    assert remote.read("corpus/manifest.json", 5, 100) == whole[5:105]
    server.fault = lambda request: faults.short
    with pytest.raises(DataError, match="file ended early: 99 bytes came instead of 100, 4 attempts"):
        remote.read("corpus/manifest.json", 6, 100)


def test_a_server_that_ignores_ranges_is_refused_when_the_corpus_is_opened_and_later(small_corpus, server, reading):
    corpus = Corpus.open(f"{server.url}/corpus", reading)
    server.fault = lambda request: faults.ignoring_ranges
    with pytest.raises(DataError, match="ignores ranges"):
        tokens_of(corpus)
    with pytest.raises(DataError, match=r"manifest\.json: bytes 1-1: \d+ bytes came: the server ignores ranges"):
        Corpus.open(f"{server.url}/corpus", reading)


@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing", "swapped"])
def test_a_remote_shard_that_is_not_what_was_written(small_corpus, server, reading, damage):
    shards = sorted(small_corpus.directory.glob("shards/*/train-*"))
    others = [shard.read_bytes() for shard in shards[1:]] + [b"x" * 300]
    for shard, other in zip(shards, others, strict=True):
        content = shard.read_bytes()
        if damage == "flipped":
            shard.write_bytes(content[:80] + bytes([content[80] ^ 4]) + content[81:])
        elif damage == "truncated":
            shard.write_bytes(content[:-9])
        elif damage == "missing":
            shard.unlink()
        else:
            shard.write_bytes(other)
    corpus = Corpus.open(f"{server.url}/corpus", reading)
    said = {
        "flipped": "corrupt shard at byte 64: checksum of block 0",
        "truncated": "ended early|416",
        "missing": "404",
        "swapped": "not the one of the manifest|does not begin|corrupt|ended early|416",
    }[damage]
    with pytest.raises(DataError, match=rf"{server.url}/corpus/shards/.*({said})"):
        tokens_of(corpus)


def test_a_missing_corpus_manifest_or_tokenizer_and_one_that_is_damaged(small_corpus, server, reading):
    for url in (f"{server.url}/none", f"{server.url}/corpus/shards"):
        with pytest.raises(DataError, match=r"manifest\.json.*404"):
            Corpus.open(url, reading)
    Corpus.open(f"{server.url}/corpus", reading)
    (small_corpus.directory / "tokenizer.json").write_text('{"another": 1}')
    with pytest.raises(DataError, match="not the tokenizer that made the shards"):
        Corpus.open(f"{server.url}/corpus", reading)
    (small_corpus.directory / "manifest.json").write_text("{}")
    with pytest.raises(DataError, match=r"manifest\.json"):
        Corpus.open(f"{server.url}/corpus", reading)


@pytest.mark.parametrize(
    "url",
    ["https://me:s3cret@host/corpus", "s3://s3cret@bucket/corpus", "https://host/corpus?sig=s3cret",
     "https://host/corpus#s3cret", "simplecache::https://s3cret/corpus"],
)  # fmt: skip
def test_a_url_with_credentials_is_refused_and_not_repeated(reading, url):
    with pytest.raises(DataError) as error:
        Corpus.open(url, reading)
    assert "environment" in str(error.value) or "chained" in str(error.value)
    assert "chained" in str(error.value) or "s3cret" not in str(error.value)


@pytest.mark.parametrize("url", ["nosuch://host/corpus", "ftp://127.0.0.1/corpus"])
def test_what_cannot_be_read_in_bounded_time_is_refused(reading, url):
    with pytest.raises(DataError, match=r"data\.corpus_dir="):
        Corpus.open(url, reading)


def test_no_cache_dir(server):
    with pytest.raises(DataError, match=r"needs data\.cache_dir"):
        Corpus.open(f"{server.url}/corpus")


@pytest.mark.parametrize("threads", [1, 16])
def test_the_loader_gives_the_same_batches_and_fetches_ahead(small_corpus, server, reading, threads):
    def batches(corpus):
        with StreamLoader(
            one_segment(stream_of(corpus), 8), start_step=3, num_steps=10, micro_batch_size=2, prefetch_steps=1
        ) as loader:
            return [batch.input_ids.tolist() for step in loader for batch in step]

    expected = batches(small_corpus)
    server.fault = lambda request: faults.status(500) if request.offset % 512 == 0 and request.earlier == 0 else None
    assert batches(Corpus.open(f"{server.url}/corpus", with_(reading, read_threads=threads))) == expected


def test_prefetch_fetches_what_is_read_afterwards(server, reading):
    corpus = Corpus.open(f"{server.url}/corpus", with_(reading, cache_bytes=1 << 20))
    stream = stream_of(corpus)
    stream.prefetch(POSITIONS)
    threads = list(corpus._remote._threads)
    for _ in threads:
        corpus._remote._queue.put(None)
    for thread in threads:
        thread.join()
    fetched = shard_requests(server)
    stream.read(POSITIONS)
    assert fetched and sorted(shard_requests(server)) == sorted(fetched) == sorted(set(fetched))


def test_closing_the_loader_does_not_wait_for_a_remote_that_is_silent(server, reading):
    corpus = Corpus.open(f"{server.url}/corpus", with_(reading, read_timeout_seconds=1e4, attempt_timeout_seconds=1e4))
    asked = threading.Event()

    def fault(request):
        asked.set()
        return faults.hanging

    server.fault = fault
    loader = StreamLoader(one_segment(stream_of(corpus), 4), start_step=0, num_steps=None, micro_batch_size=4)
    assert asked.wait(30)
    loader.close()  # without an interrupt this test runs into its time limit
    corpus.close()
    server.fault = lambda request: None
    assert len(stream_of(corpus).read(range(4))) == 4, "reading goes on after an interrupt"


READER = """
import sys
from data_pipeline.manifest import Corpus
from data_pipeline.reading import Reading
from tests.unit.data_pipeline.test_remote import CHUNK, stream_of, tokens_of
reading = Reading(cache_dir=sys.argv[2], cache_bytes=int(sys.argv[3]), chunk_bytes=CHUNK)
for round in range(int(sys.argv[4])):
    print(hash(str(tokens_of(Corpus.open(sys.argv[1], reading)))), flush=True)
"""


def reader(server, cache_dir, cache_bytes, rounds):
    line = [sys.executable, "-c", READER, f"{server.url}/corpus", str(cache_dir), str(cache_bytes), str(rounds)]
    environment = {"PYTHONHASHSEED": "0", "PYTHONPATH": str(Path(__file__).parents[3]), "PATH": ""}
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def test_several_processes_share_a_small_cache_and_kills_leave_nothing_wrong(small_corpus, server, tmp_path):
    cache, size = tmp_path / "cache", 256 * CHUNK
    alone = reader(server, tmp_path / "another", 1 << 24, 1)
    (expected, errors) = alone.communicate()
    assert alone.returncode == 0, errors
    victims, readers = [reader(server, cache, size, 1000) for _ in range(2)], [reader(server, cache, size, 4)]
    for victim in victims:
        victim.stdout.readline()  # it is in the middle of the next round
        victim.kill()
        victim.communicate()
    readers.append(reader(server, cache, size, 4))
    for process in readers:
        output, errors = process.communicate()
        assert process.returncode == 0, errors
        assert set(output.split()) == {expected.strip()}
    chunks = cache / "chunks"
    assert 0 < sum(path.stat().st_size for path in chunks.rglob("*.chunk")) <= size
    assert not {path.suffix for path in chunks.rglob("*")} - {".chunk", "", ".partial"}


def test_a_cache_of_another_corpus_is_not_believed(make_corpus, small_corpus, tmp_path, reading):
    other = make_corpus(
        {name: (kind, [9, 30, 25] * 9) for name, kind in [("prose", "text"), ("c", "code")]}, folder="b"
    )
    with serving(tmp_path) as server:
        reading = with_(reading, cache_bytes=1 << 20)
        expected = tokens_of(small_corpus)
        assert tokens_of(Corpus.open(f"{server.url}/corpus", reading)) == expected
        others = tokens_of(other)
        assert tokens_of(Corpus.open(f"{server.url}/b", reading)) == others
        fetched = len(server.of_shards())
        for name, tokens in (("corpus", expected), ("b", others)):
            assert tokens_of(Corpus.open(f"{server.url}/{name}", reading)) == tokens
        assert len(server.of_shards()) == fetched, "the corpora push each other out"
        # Every chunk becomes a copy of another one, under its own name and in its own folder.
        chunks = sorted((tmp_path / "cache" / "chunks").rglob("*.chunk"))
        contents = [chunk.read_bytes() for chunk in chunks]
        for chunk, content in zip(chunks, contents[1:] + contents[:1], strict=True):
            chunk.write_bytes(content)
        assert tokens_of(Corpus.open(f"{server.url}/corpus", reading)) == expected
        assert tokens_of(Corpus.open(f"{server.url}/b", reading)) == others


@pytest.mark.parametrize("damage", ["flipped", "truncated", "empty", "lies"])
def test_damaged_chunks_are_fetched_again(small_corpus, server, reading, tmp_path, damage):
    reading, expected = with_(reading, cache_bytes=1 << 20), tokens_of(small_corpus)
    tokens_of(Corpus.open(f"{server.url}/corpus", reading))
    for chunk in (tmp_path / "cache" / "chunks").rglob("*.chunk"):
        content = chunk.read_bytes()
        changed = content[:-3] + bytes([content[-3] ^ 1]) + content[-2:]
        if damage == "lies":  # its own checksum fits, those of the shard do not
            content = changed[:32] + struct.pack("<Q", xxhash.xxh3_64_intdigest(changed[40:])) + changed[40:]
        chunk.write_bytes({"flipped": changed, "truncated": content[:-5], "empty": b""}.get(damage, content))
    before = len(server.of_shards())
    assert tokens_of(Corpus.open(f"{server.url}/corpus", reading)) == expected
    assert len(server.of_shards()) > before


def test_a_cache_that_cannot_be_used(server, reading, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"data\.cache_dir=.*file/cache: cannot be used \(Not a directory\)"):
        Corpus.open(f"{server.url}/corpus", with_(reading, cache_dir=str(tmp_path / "file" / "cache")))


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    line = ["mount", "-t", "tmpfs", "-o", "size=800k", "tmpfs", str(folder)]
    if subprocess.run(line, capture_output=True, check=False).returncode:
        pytest.skip("tmpfs cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_and_a_read_only_one(small_corpus, server, reading, small_disk):
    reading = with_(reading, cache_dir=str(small_disk), cache_bytes=1 << 30)
    corpus = Corpus.open(f"{server.url}/corpus", reading)
    filler = small_disk / "filler"
    descriptor = os.open(filler, os.O_WRONLY | os.O_CREAT)
    with pytest.raises(OSError, match="No space left"):
        while True:
            os.write(descriptor, bytes(4096))
    os.close(descriptor)
    with pytest.raises(DataError, match=r"data\.cache_dir=.*: a chunk cannot be written \(No space left on device\)"):
        tokens_of(corpus)
    with pytest.raises(DataError, match=r"data\.cache_dir.*\(No space left on device\)"):
        Corpus.open(f"{server.url}/corpus", reading)
    filler.unlink()
    assert tokens_of(corpus) == tokens_of(small_corpus)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(DataError, match=r"data\.cache_dir.*\(Read-only file system\)"):
        Corpus.open(f"{server.url}/corpus", reading)


def test_the_copies_of_the_small_files_follow_the_remote(small_corpus, server, reading):
    directory = small_corpus.directory
    (directory / "ledger.json").write_text('{"rows": [], "notes": ["a"]}')
    mirror = Corpus.open(f"{server.url}/corpus", reading).directory
    assert mirror != directory and (mirror / "ledger.json").read_bytes() == (directory / "ledger.json").read_bytes()
    (directory / "ledger.json").unlink()
    Corpus.open(f"{server.url}/corpus", reading)
    assert not (mirror / "ledger.json").exists()
    assert sorted(path.name for path in mirror.iterdir()) == ["manifest.json", "tokenizer.json"]


def run_python(code, *arguments, **environment):
    environment = {"PYTHONPATH": str(Path(__file__).parents[3]), "PATH": "", "PYTHONHASHSEED": "0", **environment}
    line = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, env=environment, check=False)


OPEN = """
import sys
from data_pipeline.errors import DataError
from data_pipeline.manifest import Corpus
from data_pipeline.reading import Reading
try:
    print(Corpus.open(sys.argv[1], Reading(cache_dir=sys.argv[2])).manifest.manifest_hash)
except DataError as error:
    print(error)
"""


def test_credentials_come_from_the_environment(small_corpus, server, tmp_path):
    server.fault = lambda request: faults.unless_authorized
    refused = run_python(OPEN, f"{server.url}/corpus", tmp_path / "cache")
    assert "401" in refused.stdout and "credentials through the environment" in refused.stdout, refused.stderr
    # requests carry it, nothing else does
    known = run_python(
        OPEN, f"{server.url}/corpus", tmp_path / "cache", FSSPEC_HTTP='{"headers": {"Authorization": "Bearer s3cret"}}'
    )
    assert known.stdout.strip() == small_corpus.manifest.manifest_hash, known.stdout + known.stderr
    kept = [path.read_bytes() for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert kept and not any(b"s3cret" in content for content in kept)


PEAK = """
import sys
from data_pipeline.manifest import Corpus
from data_pipeline.reading import Reading
corpus = Corpus.open(sys.argv[1], Reading(cache_dir=sys.argv[2], cache_bytes=1 << 26, chunk_bytes=1 << 17))
def peak():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
tokens, step = corpus.tokens(0), 1 << 16
tokens.read(0, step)
before, total = peak(), 0
for start in range(0, tokens.num_tokens, step):
    if start + 9 * step <= tokens.num_tokens:
        corpus.prefetch(0, start + step, start + 9 * step)
    total += int(tokens.read(start, start + step).sum())
corpus.close()
print(total, peak() - before)
"""


def test_memory_does_not_grow_with_the_corpus(tmp_path):
    """128 MB of tokens, through a cache of 64 MB, in less memory than a third of that."""
    ids = np.random.default_rng(0).integers(1, 60_000, size=1 << 22)
    source = SourceInfo(name="prose", kind="text", language="prose")
    folder = tmp_path / "large"
    for number in range(16):
        file = f"shards/prose/train-{number:05d}.tokens"
        dtype = token_dtype(60_000)
        with ShardWriter(folder / file, dtype=dtype, block_tokens=4096, tokenizer_hash="ab" * 32) as writer:
            writer.append(ids)
            source.train.shards.append(ShardInfo(file=file, num_tokens=ids.size, checksum=writer.close()))
        ids = np.roll(ids, 1)
    source.train.tokens = 16 * ids.size
    (folder / "tokenizer.json").write_bytes(TOKENIZER_JSON)
    Manifest(
        sources=[source],
        tokenizer_hash=canonical_json_hash(TOKENIZER_JSON, Path("t")),
        tokenizer_file_sha256=hashlib.sha256(TOKENIZER_JSON).hexdigest(),
        vocab_size=60_000,
        end_of_document_id=0,
        dtype="uint16",
        block_tokens=4096,
    ).save(folder)
    with serving(tmp_path) as remote:
        result = run_python(PEAK, f"{remote.url}/large", tmp_path / "cache")
    total, grown = map(int, result.stdout.split())
    assert total == 16 * int(ids.sum())
    assert grown < 42_000, f"{grown} KB"
    stored = sum(path.stat().st_size for path in (tmp_path / "cache" / "chunks").rglob("*.chunk"))
    assert stored <= 1 << 26


def test_local_corpora_import_no_network():
    code = "import sys, data_pipeline.stream, data_pipeline.loader; print({'fsspec', 'aiohttp'} & set(sys.modules))"
    line = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert line.stdout.strip() == "set()"
