"""Promise 6: a damaged block is an error, or masked by a rule that no layout changes, and written to a ledger."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import DataError
from data_pipeline.loader import StreamLoader
from data_pipeline.manifest import Corpus
from data_pipeline.quotas import quotas_for
from data_pipeline.segments import one_segment
from data_pipeline.shards import HEADER_BYTES, BadBlockError
from data_pipeline.stream import IGNORED_LABEL, TokenStream, heldout_batches
from data_pipeline.substitutes import SubstituteLedger, read_substitutes

BLOCK = 16  # of checksums
SHUFFLE = 24  # of the stream: boundaries of the two do not fall together
S = 20


@pytest.fixture
def lengths():
    return [1, 40, 7, 33, 2, 60, 15, 9, 80, 21, 30, 3] * 4


@pytest.fixture
def sound(make_corpus, lengths):
    return make_corpus({"prose": ("text", lengths), "c": ("code", lengths)}, heldout=[5, 40, 8])


def damage(corpus, *blocks):
    """Flip a byte in blocks (source index, number of the block in the file of its first shard); -> damaged tokens."""
    damaged = {}
    for source, block in blocks:
        info = corpus.manifest.sources[source].train.shards[0]
        path = corpus.directory / info.file
        content = bytearray(path.read_bytes())
        content[HEADER_BYTES + 2 * (block * BLOCK + 3)] ^= 0x40
        path.write_bytes(content)
        damaged.setdefault(source, set()).update(range(block * BLOCK, min((block + 1) * BLOCK, info.num_tokens)))
    corpus.close()
    return damaged


def stream_of(corpus, sequence_length=S):
    plan = quotas_for(
        corpus.manifest, 4_000, sequence_length=sequence_length, shuffle_block_tokens=SHUFFLE, max_repeats=1e6
    )
    return TokenStream(corpus, plan.mixture(), sequence_length, seed=3, shuffle_block_tokens=SHUFFLE)


def places(corpus, sequence_length, positions):
    """[B, S] index in its source of every token of the stream, from the tokens of a sound corpus made of indices."""
    stream = stream_of(corpus, sequence_length)
    rows = []
    for position in positions:
        source, index = stream.mixture.lookup(position)
        offset, row = index * sequence_length, []
        while len(row) < sequence_length:
            place = stream.epochs[source].place(offset + len(row))
            row += range(place.token, place.token + min(place.left, sequence_length - len(row)))
        rows.append(row)
    return np.array(rows)


def test_the_default_is_an_error(sound):
    damage(sound, (0, 1))
    with pytest.raises(BadBlockError, match="corrupt shard at byte 96: checksum of block 1 does not match"):
        stream_of(sound).read(range(200))


@pytest.mark.parametrize("sequence_length", [1, S, 3 * SHUFFLE, 100])
def test_damaged_tokens_are_masked_and_nothing_else_changes(sound, sequence_length):
    positions = range(1600 // sequence_length + 20)
    before, where = stream_of(sound, sequence_length).read(positions), places(sound, sequence_length, positions)
    damaged = damage(sound, (0, 1), (0, 2), (0, 5), (1, 0), (1, 6))
    told = []
    sound.on_bad_block = lambda source, variant, bad: told.append((source, bad.start, bad.stop))
    after = stream_of(sound, sequence_length).read(positions)
    end = sound.manifest.end_of_document_id
    bad = np.array([np.isin(row, list(damaged[s])) for row, s in zip(where, before.source_ids, strict=True)])
    next_bad = np.array([np.isin(row + 1, list(damaged[s])) for row, s in zip(where, before.source_ids, strict=True)])
    assert bad.any() and (next_bad & ~bad).any()
    assert (after.source_ids == before.source_ids).all()
    assert (after.input_ids == np.where(bad, end, before.input_ids)).all()
    assert (after.labels == np.where(bad | next_bad, IGNORED_LABEL, before.labels)).all()
    assert {(s, start) for s, start, _ in told} <= {(0, 16), (0, 32), (0, 80), (1, 0), (1, 96)}
    assert all(stop - start == (4 if start == 96 else BLOCK) for _, start, stop in told)


def test_the_masked_stream_and_its_ledger_are_the_same_for_every_layout(sound, tmp_path):
    damage(sound, (0, 1), (0, 4), (1, 3))
    expected = lines = None
    for number, (ranks, micro) in enumerate([(1, 12), (2, 3), (4, 1), (12, 1)]):
        ledger, seen = tmp_path / f"{number}.jsonl", {}
        for rank in range(ranks):
            corpus = Corpus.open(sound.directory)
            corpus.on_bad_block = SubstituteLedger(ledger, corpus)
            with StreamLoader(
                one_segment(stream_of(corpus), 12), start_step=0, num_steps=20, micro_batch_size=micro,
                data_parallel_rank=rank, data_parallel_size=ranks,
            ) as loader:  # fmt: skip
                for step, batches in enumerate(loader):
                    seen[step, rank] = [row for batch in batches for row in batch.labels.tolist()]
        stream = [row for place in sorted(seen) for row in seen[place]]
        found = sorted(ledger.read_text().splitlines())
        assert expected in (None, stream) and lines in (None, found)
        expected, lines = stream, found
    assert len(lines) == len(set(lines)) == 3
    record = json.loads(lines[-1])
    assert record == {
        "source": "prose", "variant": 0, "first_token": 64, "num_tokens": 16, "reason": "checksum",
        "place": f"/shards/prose/train-00000.tokens, byte {HEADER_BYTES + 128}",
    }  # fmt: skip


def test_only_blocks_are_replaced_never_whole_shards_or_heldout_documents(sound, tmp_path):
    sound.on_bad_block = SubstituteLedger(tmp_path / "ledger.jsonl", sound)
    held = sound.directory / sound.manifest.sources[0].heldout.shards[0].file
    held.write_bytes(held.read_bytes()[:70] + b"xx" + held.read_bytes()[72:])
    with pytest.raises(DataError, match="checksum of block 0"):
        list(heldout_batches(sound, S, 4))
    shard = sound.directory / sound.manifest.sources[0].train.shards[0].file
    for content in (shard.read_bytes()[:-8], b"x" + shard.read_bytes()[1:], None):
        sound.close()
        shard.unlink() if content is None else shard.write_bytes(content)
        with pytest.raises(DataError, match=shard.name):
            stream_of(sound).read(range(200))
    assert read_substitutes(tmp_path / "ledger.jsonl") == []


def test_a_ledger_that_cannot_be_written_is_an_error(sound, tmp_path):
    damage(sound, (0, 1))
    sound.on_bad_block = SubstituteLedger(tmp_path / "none" / "ledger.jsonl", sound)
    with pytest.raises(DataError, match=r"ledger\.jsonl: cannot be written"):
        stream_of(sound).read(range(200))


@settings(max_examples=40, deadline=None)
@given(start=st.integers(0, 140), size=st.integers(1, 60), blocks=st.sets(st.integers(0, 6), max_size=7))
def test_read_around_fills_exactly_the_damaged_blocks(tmp_path_factory, start, size, blocks):
    from tests.unit.data_pipeline.test_shards import IDS, ShardCache, ShardedTokens, write

    folder = tmp_path_factory.mktemp("shards")
    infos = [write(folder / f"{n}.tokens", IDS[n * 100 : n * 100 + 100]) for n in range(2)]  # blocks of 64: 64, 36
    starts = [0, 64, 100, 164]
    damaged = {block % 4 for block in blocks}
    for block in damaged:
        path = folder / infos[block // 2].file
        content = bytearray(path.read_bytes())
        content[HEADER_BYTES + 2 * (starts[block] % 100)] ^= 1
        path.write_bytes(content)
    tokens = ShardedTokens(folder, infos, ShardCache())
    stop = min(200, start + size)
    ids, bad = tokens.read_around(start, stop, fill=7)
    ends = [*starts[1:], 200]
    expected = IDS[start:stop].copy()
    for block in damaged:
        expected[max(0, starts[block] - start) : max(0, ends[block] - start)] = 7
    assert ids.tolist() == expected.tolist()
    touched = [b for b in sorted(damaged) if starts[b] < stop and ends[b] > start]
    assert [(b.start, b.stop) for b in bad] == [(starts[b], ends[b]) for b in touched]
