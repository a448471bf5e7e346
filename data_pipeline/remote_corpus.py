"""Opening a corpus behind a URL: its small files are copied, its shards come through the cache."""

from pathlib import Path

from data_pipeline.chunk_cache import ChunkCache
from data_pipeline.errors import DataError
from data_pipeline.manifest import LEDGER_FILE, MANIFEST_FILE, MAX_JSON_BYTES, TOKENIZER_FILE, Manifest
from data_pipeline.reading import Reading
from data_pipeline.remote import Remote, mirror_small_files
from data_pipeline.remote_shards import RemoteShards, corpus_mirror
from data_pipeline.shards import token_dtype

_SMALL_FILES = {MANIFEST_FILE: True, TOKENIZER_FILE: True, LEDGER_FILE: False}  # name -> must be there


def open_remote(url: str, reading: Reading) -> tuple[Path, Manifest, RemoteShards]:
    """(folder of the copies, manifest, shards) of the corpus at `url`.

    Raises DataError when it is not there or cannot be read, and when the cache cannot be used.
    """
    remote = Remote(url, reading)
    if reading.cache_dir is None:
        raise DataError(f"{url}: needs data.cache_dir; give a folder on a local disk, for data.cache_bytes of copies")
    folder = corpus_mirror(Path(reading.cache_dir), remote.url)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"data.cache_dir={reading.cache_dir}: cannot be used ({error.strerror}); give a folder on a local disk "
            "that can be written"
        ) from error
    mirror_small_files(remote, folder, _SMALL_FILES, MAX_JSON_BYTES)
    remote.check_ranges(MANIFEST_FILE)
    manifest = Manifest.load(folder)
    cache = ChunkCache(Path(reading.cache_dir) / "chunks", reading.cache_bytes)
    itemsize = token_dtype(manifest.vocab_size).itemsize
    shards = RemoteShards(remote, cache, reading, itemsize=itemsize, block_tokens=manifest.block_tokens)
    return folder, manifest, shards
