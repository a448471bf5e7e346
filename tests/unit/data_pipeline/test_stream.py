"""The stream: pure, elastic, and no label crosses a document."""

import dataclasses
import hashlib
import subprocess
import sys
import time

import numpy as np
import pytest

from data_pipeline.errors import DataError
from data_pipeline.loader import StreamLoader
from data_pipeline.manifest import Corpus, Manifest, SourceInfo, SplitInfo
from data_pipeline.mixture import Mixture
from data_pipeline.quotas import quotas_for
from data_pipeline.segments import one_segment
from data_pipeline.shards import ShardInfo
from data_pipeline.stream import IGNORED_LABEL, TokenStream, heldout_batches

END = 0
FIELDS = ("input_ids", "labels", "document_ids", "source_ids")


def stream_of(corpus, total=120, S=24, seed=5, block=32, **options):
    plan = quotas_for(corpus.manifest, total, sequence_length=S, shuffle_block_tokens=block, max_repeats=50)
    return TokenStream(corpus, plan.mixture(), S, seed, shuffle_block_tokens=block, **options)


def one_source(corpus, source, total, S, block, **options):
    quotas = [total if i == source else 0 for i in range(len(corpus.manifest.names))]
    mixture = Mixture(corpus.manifest.names, corpus.manifest.kinds, quotas)
    return TokenStream(corpus, mixture, S, 5, shuffle_block_tokens=block, **options)


def source_ids(corpus, source=0, split="train"):
    tokens = corpus.tokens(source, split)
    return tokens.read(0, tokens.num_tokens).astype(np.int64)


def test_shapes_and_types(small_corpus):
    batch = stream_of(small_corpus).read([0, 7, 3])
    assert batch.input_ids.shape == batch.labels.shape == batch.document_ids.shape == (3, 24)
    assert (batch.input_ids.dtype, batch.labels.dtype) == (np.int64, np.int64)
    assert (batch.document_ids.dtype, batch.source_ids.dtype) == (np.int32, np.int32)
    assert len(batch) == 3


@pytest.mark.parametrize(
    ("S", "block", "golden"),
    [
        (24, 32, "3bf50db29765729d58f1808813b930df428ca3c7e034c2f6b73e80537bca5b6d"),
        (33, 16, "c6af4ed9c69e57cd4d82e9413f51a435652ed77f12bbb974e127ef34feb4e8eb"),
    ],
)
def test_the_stream_is_the_one_it_was(small_corpus, S, block, golden):
    """Runs resume with newer versions of this program: the same positions must stay the same tokens for ever."""
    batch = stream_of(small_corpus, total=200, S=S, block=block).read(range(200))
    content = b"".join(np.ascontiguousarray(getattr(batch, field)).astype("<i8").tobytes() for field in FIELDS)
    assert hashlib.sha256(content).hexdigest() == golden


def test_reading_is_pure(small_corpus, tmp_path):
    stream = stream_of(small_corpus)
    whole = stream.read(range(stream.total))
    again = stream_of(Corpus.open(tmp_path / "corpus"))
    for position in (119, 0, 60, 7):
        for field in FIELDS:
            np.testing.assert_array_equal(getattr(again.read([position]), field)[0], getattr(whole, field)[position])


def test_another_seed_is_another_order(small_corpus):
    first, second = (stream_of(small_corpus, seed=seed).read(range(40)) for seed in (5, 6))
    assert (first.source_ids == second.source_ids).all()
    assert (first.input_ids != second.input_ids).mean() > 0.5


@pytest.mark.parametrize("S", [1, 7, 24, 32, 33, 100])
def test_labels_are_the_next_token_in_file_order_and_never_cross_documents(small_corpus, S):
    for source in range(len(small_corpus.manifest.names)):
        ids = source_ids(small_corpus, source)
        # Ids in a document count up from 1 through the source, so the next token of `x` is x + 1 or END.
        last_of_document = set((ids[np.flatnonzero(ids == END) - 1]).tolist())
        batch = one_source(small_corpus, source, 30, S, 32).read(range(30))
        assert (batch.labels[batch.input_ids == END] == IGNORED_LABEL).all()
        inside = batch.input_ids != END
        expected = [END if token in last_of_document else token + 1 for token in batch.input_ids[inside].tolist()]
        assert batch.labels[inside].tolist() == expected


def test_the_last_token_of_a_source_has_no_label(make_corpus):
    """Nothing follows it in its file. Usually it is the end of a document; here it is a token like any other."""
    corpus = make_corpus({"c": ("code", [31, 31])})
    corpus = Corpus(corpus.directory, dataclasses.replace(corpus.manifest, end_of_document_id=999))
    batch = one_source(corpus, 0, 4, 16, 16).read(range(4))
    last = source_ids(corpus)[-16:].tolist()
    for ids, labels in zip(batch.input_ids.tolist(), batch.labels.tolist(), strict=True):
        assert labels[:-1] == ids[1:]
        assert (labels[-1] == IGNORED_LABEL) == (ids == last)
    assert last in batch.input_ids.tolist()


def test_document_ids_change_exactly_after_an_end_and_at_a_seam(small_corpus):
    S, block = 50, 16
    batch = one_source(small_corpus, 0, 20, S, block).read(range(20))
    assert (batch.document_ids[:, 0] == 0).all()
    for row in range(20):
        for at in range(1, S):
            is_seam = (row * S + at) % block == 0
            begins = is_seam or batch.input_ids[row, at - 1] == END
            assert batch.document_ids[row, at] - batch.document_ids[row, at - 1] == int(begins)


def test_an_epoch_shows_every_block_once_and_the_next_in_another_order(small_corpus):
    block = 16
    ids = source_ids(small_corpus)
    blocks = ids[: len(ids) // block * block].reshape(-1, block)
    stream = one_source(small_corpus, 0, 2 * len(blocks), block, block)
    rows = stream.read(range(2 * len(blocks))).input_ids.tolist()
    first, second = rows[: len(blocks)], rows[len(blocks) :]
    assert sorted(first) == sorted(second) == sorted(blocks.tolist())
    assert first != second
    assert first != blocks.tolist()
    assert stream.epochs[0].tail_tokens == len(ids) % block


@pytest.mark.parametrize("S", [8, 20, 40, 120])
def test_another_sequence_length_covers_the_same_tokens(small_corpus, S):
    total = 240
    reference = one_source(small_corpus, 2, total // 24, 24, 32).read(range(total // 24))
    other = one_source(small_corpus, 2, total // S, S, 32).read(range(total // S))
    for field in ("input_ids", "labels"):
        assert getattr(other, field).ravel().tolist() == getattr(reference, field).ravel().tolist()


def test_the_global_stream_does_not_depend_on_ranks_or_micro_batches(small_corpus):
    stream = stream_of(small_corpus)
    expected = stream.read(range(24, 96))
    for size, micro in ((1, 12), (1, 1), (2, 3), (3, 4), (4, 1), (6, 2), (12, 1)):
        loaders = [
            StreamLoader(
                one_segment(stream, 12), start_step=2, num_steps=6, micro_batch_size=micro,
                data_parallel_rank=rank, data_parallel_size=size,
            )
            for rank in range(size)
        ]  # fmt: skip
        steps = [[batch for rank in step for batch in rank] for step in zip(*loaders, strict=True)]
        assert len(steps) == 6
        for field in FIELDS:
            joined = np.concatenate([getattr(batch, field) for step in steps for batch in step])
            np.testing.assert_array_equal(joined, getattr(expected, field))
        for loader in loaders:
            loader.close()


def test_loader_raises_what_its_thread_met_and_stops(small_corpus, tmp_path):
    shard = next((tmp_path / "corpus" / "shards").rglob("train-00000.tokens"))
    content = bytearray(shard.read_bytes())
    for at in range(64, len(content) - 64, 16):
        content[at] ^= 1
    shard.write_bytes(content)
    stream = one_segment(stream_of(Corpus.open(tmp_path / "corpus")), 12)
    options = {"start_step": 0, "num_steps": 10, "micro_batch_size": 12}
    with StreamLoader(stream, **options) as loader:
        for _ in range(2):
            with pytest.raises(DataError, match="corrupt shard"):
                list(loader)
    assert not loader._thread.is_alive()


def test_loader_can_be_closed_early_and_measures_its_wait(small_corpus):
    loader = StreamLoader(one_segment(stream_of(small_corpus), 12), start_step=0, num_steps=10, micro_batch_size=4)
    assert [len(batch) for batch in next(loader)] == [4, 4, 4]
    assert loader.wait_seconds >= 0
    loader.close()
    loader.close()
    assert not loader._thread.is_alive()
    with pytest.raises(StopIteration):
        next(loader)


def test_a_loader_without_end_goes_on_behind_the_plan(small_corpus):
    """A run that discarded batches needs more than were planned: the next sequences of the same sources."""
    stream = stream_of(small_corpus)
    with StreamLoader(one_segment(stream, 12), start_step=8, num_steps=None, micro_batch_size=12) as loader:
        batches = [next(loader)[0] for _ in range(5)]
    later = stream_of(small_corpus, cursors=stream.cursors_at(stream.total))
    assert stream.total == 120
    np.testing.assert_array_equal(batches[1].input_ids, stream.read(range(108, 120)).input_ids)
    np.testing.assert_array_equal(
        np.concatenate([batch.input_ids for batch in batches[2:]]), later.read(range(36)).input_ids
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start_step": -1}, "step -1: must be >= 0"),
        ({"micro_batch_size": 5}, "multiple of micro_batch_size 5 x data_parallel_size 1"),
        ({"data_parallel_size": 5}, "must be a multiple"),
        ({"data_parallel_rank": 1}, r"must be in 0\.\.0"),
        ({"num_steps": 11}, "steps 0..11: the mixture is planned for 10"),
        ({"prefetch_steps": 0}, "prefetch_steps=0"),
        ({"micro_batch_size": 0}, "must be >= 1"),
    ],
)
def test_loader_sizes(small_corpus, options, message):
    sizes = {"start_step": 0, "num_steps": 10, "micro_batch_size": 4, **options}
    with pytest.raises(DataError, match=message):
        StreamLoader(one_segment(stream_of(small_corpus), 12), **sizes)


def test_a_new_segment_continues_where_the_last_one_stopped(small_corpus):
    whole = one_source(small_corpus, 0, 20, 24, 32)
    first = one_source(small_corpus, 0, 10, 24, 32)
    second = one_source(small_corpus, 0, 10, 24, 32, cursors=first.cursors_at(10))
    assert second.read(range(10)).input_ids.tolist() == whole.read(range(10, 20)).input_ids.tolist()
    assert first.consumed_tokens(10)[0] == 240


def test_a_token_outside_the_vocabulary_is_named(small_corpus):
    manifest = dataclasses.replace(small_corpus.manifest, vocab_size=100)
    corpus = Corpus(small_corpus.directory, manifest)
    with pytest.raises(DataError, match=r"\.tokens, byte \d+: token id \d+ is outside the vocabulary of 100"):
        stream_of(corpus).read(range(120))
    with pytest.raises(DataError, match="outside the vocabulary of 30"):
        list(heldout_batches(Corpus(small_corpus.directory, dataclasses.replace(manifest, vocab_size=30)), 16, 4))


def test_a_source_smaller_than_a_block_is_an_error(small_corpus):
    with pytest.raises(DataError, match=r"shuffle_block_tokens=100000: source 'prose'"):
        one_source(small_corpus, 0, 2, 8, 100_000)


@pytest.mark.parametrize("S", [1, 16, 33, 500])
def test_held_out_documents_each_token_once(small_corpus, S):
    ids = source_ids(small_corpus, 0, "heldout")
    batches = list(heldout_batches(small_corpus, S, batch_size=4))
    assert all(len(batch) == 4 for batch in batches[:-1])
    for source in range(5):
        rows = [batch.rows(i, i + 1) for batch in batches for i in range(len(batch)) if batch.source_ids[i] == source]
        inputs = np.concatenate([row.input_ids[0] for row in rows])
        labels = np.concatenate([row.labels[0] for row in rows])
        assert inputs[: len(ids)].tolist() == ids.tolist()
        supervised = labels != IGNORED_LABEL
        # Every token but the first of each document is predicted once; nothing in the padding is.
        assert supervised.sum() == len(ids) - 5
        assert not supervised[len(ids) :].any()
        assert labels[supervised].tolist() == inputs[1 : len(ids)][inputs[: len(ids) - 1] != END].tolist()
        padding = len(inputs) - len(ids)
        if padding:
            documents = rows[-1].document_ids[0]
            assert len(set(documents[-padding:].tolist())) == 1
            assert documents[-padding] == documents[-padding - 1] + 1


def test_held_out_limit(small_corpus):
    batches = list(heldout_batches(small_corpus, 16, batch_size=3, max_sequences_per_source=2))
    assert np.concatenate([batch.source_ids for batch in batches]).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_opening_eighteen_trillion_tokens_touches_no_shard(tmp_path):
    half = 9 * 10**12
    weights = [1 / rank**1.1 for rank in range(1, 104)]
    sizes = [half, *(int(half * weight / sum(weights)) for weight in weights)]
    shard_tokens = 1 << 30
    sources = []
    for number, tokens in enumerate(sizes):
        shards = [
            ShardInfo(
                file=f"shards/{number}/{i}.tokens", num_tokens=min(shard_tokens, tokens - start), checksum="0" * 16
            )
            for i, start in enumerate(range(0, tokens, shard_tokens))
        ]
        train = SplitInfo(documents=1, bytes=3 * tokens, tokens=tokens, shards=shards)
        sources.append(SourceInfo(name=f"s{number}", kind="code" if number else "text", language="x", train=train))
    manifest = Manifest(
        sources=sources, tokenizer_hash="0" * 64, tokenizer_file_sha256="0" * 64, vocab_size=76_800,
        end_of_document_id=0, dtype="uint32", block_tokens=4096,
    )  # fmt: skip
    manifest.save(tmp_path)
    corpus = Corpus(tmp_path, Manifest.load(tmp_path))
    plan = quotas_for(corpus.manifest, 4_394_531_000, sequence_length=4096)
    stream = TokenStream(corpus, plan.mixture(), 4096, seed=0)
    assert stream.total == sum(plan.quotas) == 4_394_531_000
    source, index = stream.mixture.lookup(4_000_000_000)
    place = stream.epochs[source].place(index * 4096)
    assert 0 <= place.token < corpus.manifest.sources[source].train.tokens
    assert place.left == 2048
    with pytest.raises(DataError, match="shard cannot be opened"):
        stream.read([4_000_000_000])


def test_importing_the_stream_needs_no_large_library():
    code = (
        "import sys, data_pipeline.stream, data_pipeline.quotas, data_pipeline.loader\n"
        "print([name for name in ('torch', 'pyarrow', 'datasets', 'tokenizers', 'pandas', 'loopcoder_train') "
        "if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_behind_the_expected_end_nothing_is_read_until_it_is_asked_for(small_corpus):
    """Slow consumers and fast ones have read the same batches when a run ends; one that needs more gets more."""
    stream, read = one_segment(stream_of(small_corpus), 12), []

    class Recorded:
        def __getattr__(self, name):
            return getattr(stream, name)

        def read(self, batch, part=0, parts=1):
            read.append(batch)
            return stream.read(batch, part, parts)

        def prefetch(self, batch, part=0, parts=1):
            assert batch < 5, "begun before anybody asked"

    options = {"start_step": 2, "num_steps": None, "expected_steps": 3, "micro_batch_size": 12, "prefetch_steps": 4}
    with StreamLoader(Recorded(), **options) as loader:
        for _ in range(3):
            next(loader)
        time.sleep(0.3)
        assert read == [2, 3, 4]
        next(loader)
        time.sleep(0.3)
        assert read == [2, 3, 4, 5]
