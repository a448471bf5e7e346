"""Promise 6: nothing that is not as it was written leaves a shard."""

import numpy as np
import pytest

from data_pipeline.errors import DataError
from data_pipeline.shards import (
    HEADER_BYTES,
    ShardCache,
    ShardedTokens,
    ShardInfo,
    ShardReader,
    ShardWriter,
    token_dtype,
)

TOKENS, BLOCK = 1000, 64
IDS = (np.arange(TOKENS) * 7919) % 60_000


def write(path, ids=IDS, vocab_size=60_000):
    with ShardWriter(path, dtype=token_dtype(vocab_size), block_tokens=BLOCK, tokenizer_hash="cd" * 32) as writer:
        for start in range(0, len(ids), 97):
            writer.append(ids[start : start + 97])
        return ShardInfo(file=path.name, num_tokens=len(ids), checksum=writer.close())


def read_all(path, info):
    tokens = ShardedTokens(path.parent, [info], ShardCache())
    return tokens.read(0, tokens.num_tokens)


@pytest.mark.parametrize("vocab_size", [60_000, 65_536, 65_537, 100_000])
def test_what_was_written_is_read(tmp_path, vocab_size):
    ids = (IDS * 31) % vocab_size
    info = write(tmp_path / "a.tokens", ids, vocab_size)
    assert read_all(tmp_path / "a.tokens", info).tolist() == ids.tolist()
    assert token_dtype(vocab_size).itemsize == (2 if vocab_size <= 65_536 else 4)


def test_any_range_across_blocks_and_shards(tmp_path):
    infos = [
        write(tmp_path / f"{number}.tokens", IDS[start : start + 333]) for number, start in enumerate((0, 333, 666))
    ]
    tokens = ShardedTokens(tmp_path, infos, ShardCache(max_open=1, max_held_bytes=300))
    random = np.random.default_rng(1)
    for _ in range(200):
        start, stop = sorted(random.choice(1000, size=2, replace=False).tolist())
        if stop <= 999:
            assert tokens.read(start, stop).tolist() == IDS[start:stop].tolist()


def test_a_flipped_byte_anywhere_is_found(tmp_path):
    path = tmp_path / "a.tokens"
    info = write(path)
    good = path.read_bytes()
    # Every byte of the header, one of each block of the body, every checksum of the footer.
    body_end = HEADER_BYTES + 2 * TOKENS
    offsets = [
        *range(HEADER_BYTES),
        *range(HEADER_BYTES + 5, body_end, 2 * BLOCK),
        body_end - 1,
        *range(body_end, len(good), 3),
    ]
    for offset in offsets:
        path.write_bytes(good[:offset] + bytes([good[offset] ^ 0x10]) + good[offset + 1 :])
        with pytest.raises(DataError) as error:
            read_all(path, info)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)
    path.write_bytes(good)
    assert read_all(path, info).tolist() == IDS.tolist()


def test_the_message_has_the_byte_offset_of_the_block(tmp_path):
    path = tmp_path / "a.tokens"
    info = write(path)
    content = bytearray(path.read_bytes())
    block = 3
    content[HEADER_BYTES + 2 * (block * BLOCK + 10)] ^= 1
    path.write_bytes(content)
    tokens = ShardedTokens(tmp_path, [info], ShardCache())
    assert tokens.read(0, block * BLOCK).tolist() == IDS[: block * BLOCK].tolist()
    with pytest.raises(
        DataError, match=f"corrupt shard at byte {HEADER_BYTES + 2 * block * BLOCK}: checksum of block {block}"
    ):
        tokens.read(block * BLOCK + 1, block * BLOCK + 2)


@pytest.mark.parametrize("size", [0, 10, HEADER_BYTES, HEADER_BYTES + 100, -1])
def test_truncated(tmp_path, size):
    path = tmp_path / "a.tokens"
    info = write(path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DataError, match=r"a\.tokens: corrupt shard at byte"):
        read_all(path, info)


@pytest.mark.parametrize("change", [-1, -8, 1])
def test_a_wrong_length_is_found_on_opening(tmp_path, change):
    path = tmp_path / "a.tokens"
    info = write(path)
    content = path.read_bytes()
    path.write_bytes(content[:change] if change < 0 else content + b"x")
    with pytest.raises(DataError, match=f"{len(content) + change} bytes long, should be {len(content)}"):
        ShardReader(path, info)


def test_truncated_while_open(tmp_path):
    path = tmp_path / "a.tokens"
    info = write(path)
    tokens = ShardedTokens(tmp_path, [info], ShardCache())
    tokens.read(0, 10)
    with path.open("r+b") as file:
        file.truncate(HEADER_BYTES + 1000)
    with pytest.raises(DataError, match="truncated while in use"):
        tokens.read(900, 910)


def test_missing_and_swapped(tmp_path):
    info = write(tmp_path / "a.tokens")
    write(tmp_path / "b.tokens", (IDS + 1) % 60_000)
    (tmp_path / "b.tokens").replace(tmp_path / "a.tokens")
    with pytest.raises(DataError, match="not the one of the manifest"):
        read_all(tmp_path / "a.tokens", info)
    (tmp_path / "a.tokens").unlink()
    with pytest.raises(DataError, match=r"a\.tokens: shard cannot be opened"):
        read_all(tmp_path / "a.tokens", info)


def test_verify_finds_a_footer_that_no_read_touched(tmp_path):
    path = tmp_path / "a.tokens"
    write(path)
    ShardReader(path).verify()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="footer"):
        ShardReader(path).verify()


def test_ids_that_do_not_fit_are_never_wrapped(tmp_path):
    with pytest.raises(DataError, match="70000 does not fit"):
        write(tmp_path / "a.tokens", np.array([1, 70_000]), 60_000)
    assert list(tmp_path.iterdir()) == []


def test_a_shard_that_is_not_closed_does_not_exist(tmp_path):
    writer = ShardWriter(tmp_path / "a.tokens", dtype=token_dtype(10), block_tokens=4, tokenizer_hash="00" * 32)
    writer.append(np.arange(9))
    assert not (tmp_path / "a.tokens").exists()
    writer.close()
    assert (tmp_path / "a.tokens").exists()
