"""The cache of chunks: what comes out is what went in, or nothing; never more bytes than allowed; oldest out first."""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline import chunk_cache
from data_pipeline.chunk_cache import FOLDERS, ChunkCache
from data_pipeline.errors import DataError

SIZE = 100
STORED = SIZE + 40  # with the header


def key(number):
    return bytes([number % 256]) + number.to_bytes(15, "big")


def content(number, size=SIZE):
    return bytes([number % 251]) * size


def bytes_in(cache):
    return sum(path.stat().st_size for path in cache.directory.rglob("*.chunk"))


def in_order(cache):
    """Give every chunk its own time: reads and writes may follow each other faster than the clock of the files."""
    for number, path in enumerate(sorted(cache.directory.rglob("*.chunk"), key=lambda path: path.stat().st_mtime_ns)):
        os.utime(path, ns=(number * 10**9, number * 10**9))


@settings(max_examples=30, deadline=None)
@given(
    operations=st.lists(
        st.tuples(st.sampled_from(["put", "get", "remove"]), st.integers(0, 300), st.integers(1, SIZE)), max_size=150
    )
)
def test_any_history_keeps_the_bound_and_never_gives_other_bytes(tmp_path_factory, operations):
    cache = ChunkCache(tmp_path_factory.mktemp("cache"), FOLDERS * 3 * STORED)
    last = {}
    for what, number, size in operations:
        if what == "put":
            cache.put(key(number), content(number, size))
            last[number] = content(number, size)
            assert cache.get(key(number)) == last[number]
        elif what == "remove":
            cache.remove(key(number))
            last.pop(number, None)
        else:
            assert cache.get(key(number)) in (None, last.get(number))
        assert bytes_in(cache) <= cache.max_bytes


def test_a_full_cache_keeps_its_bound_over_many_rounds(tmp_path):
    cache = ChunkCache(tmp_path, FOLDERS * 4 * STORED)
    for number in range(40 * FOLDERS):
        cache.put(key(number), content(number))
        if number % FOLDERS == 0:
            assert bytes_in(cache) <= cache.max_bytes
    assert bytes_in(cache) > cache.max_bytes // 2, "it forgets far more than it must"


def test_what_was_read_longest_ago_goes_first(tmp_path):
    cache = ChunkCache(tmp_path, FOLDERS * 10 * STORED)
    same_folder = [number * FOLDERS for number in range(20)]
    for number in same_folder[:10]:
        cache.put(key(number), content(number))
        in_order(cache)
    assert cache.get(key(same_folder[0])) is not None  # the oldest is read, hence the newest
    in_order(cache)
    cache.put(key(same_folder[10]), content(same_folder[10]))
    left = [number for number in same_folder if cache.get(key(number)) is not None]
    assert left == [same_folder[0], *same_folder[3:11]]


@pytest.mark.parametrize("count", [b"", b"rubbish", bytes(32), b"-5"])
def test_a_lost_count_is_counted_anew(tmp_path, count):
    cache = ChunkCache(tmp_path, FOLDERS * 4 * STORED)
    for number in range(4):
        cache.put(key(number * FOLDERS), content(number))
    (tmp_path / "00" / "bytes").write_bytes(count)
    for number in range(4, 12):
        cache.put(key(number * FOLDERS), content(number))
        assert bytes_in(cache) <= 4 * STORED


def test_what_a_killed_process_left_is_neither_read_nor_kept(tmp_path):
    cache = ChunkCache(tmp_path, FOLDERS * 4 * STORED)
    cache.put(key(0), content(0))
    (tmp_path / "00" / "partial").write_bytes(b"x" * 50)
    assert cache.get(key(0)) == content(0)
    cache.put(key(FOLDERS), content(1))
    assert not (tmp_path / "00" / "partial").exists()


@pytest.mark.parametrize("offset", range(0, STORED, 7))
def test_a_flipped_bit_anywhere_in_a_chunk_is_found(tmp_path, offset):
    cache = ChunkCache(tmp_path, FOLDERS * 4 * STORED)
    cache.put(key(0), content(1))
    stored = bytearray(cache._path(key(0)).read_bytes())
    stored[offset] ^= 0x20
    cache._path(key(0)).write_bytes(stored)
    assert cache.get(key(0)) is None


def test_a_chunk_under_another_name_is_not_taken(tmp_path):
    cache = ChunkCache(tmp_path, FOLDERS * 4 * STORED)
    cache.put(key(0), content(0))
    cache._path(key(0)).rename(cache._path(key(FOLDERS)))
    assert cache.get(key(FOLDERS)) is None


def test_a_folder_that_is_taken_away_is_an_error_with_its_name(tmp_path):
    cache = ChunkCache(tmp_path / "cache", FOLDERS * 4 * STORED)
    (tmp_path / "cache" / "00" / "bytes").unlink()
    (tmp_path / "cache" / "00").rmdir()
    with pytest.raises(DataError, match=r"data\.cache_dir=.*cache: a chunk cannot be written \(No such file"):
        cache.put(key(0), content(0))


def test_the_smallest_cache_that_is_allowed_holds_four_chunks_per_folder():
    assert chunk_cache.MIN_CACHED_CHUNKS == 4 * FOLDERS
