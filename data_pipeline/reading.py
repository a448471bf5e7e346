"""How a corpus is read, as far as that changes no token: where from, through which cache, how patiently."""

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from data_pipeline.errors import DataError

MIN_CACHED_CHUNKS = 256


@dataclass(kw_only=True, slots=True)
class Reading:
    """Options of `data.*` for a remote corpus, which needs a cache_dir."""

    cache_dir: str | None = None
    cache_bytes: int = 64 * 2**30
    chunk_bytes: int = 128 * 2**10
    read_timeout_seconds: float = 300.0
    attempt_timeout_seconds: float = 30.0
    read_threads: int = 16

    def __post_init__(self) -> None:
        for name in ("cache_bytes", "chunk_bytes", "read_timeout_seconds", "attempt_timeout_seconds", "read_threads"):
            if getattr(self, name) <= 0:
                raise DataError(f"data.{name}={getattr(self, name)}: must be greater than 0")
        if self.cache_bytes < MIN_CACHED_CHUNKS * self.chunk_bytes:
            raise DataError(
                f"data.cache_bytes={self.cache_bytes}: must hold {MIN_CACHED_CHUNKS} chunks of "
                f"data.chunk_bytes={self.chunk_bytes}; raise it to {MIN_CACHED_CHUNKS * self.chunk_bytes}"
            )


def is_remote(location: str | Path) -> bool:
    """Whether a corpus lies behind a URL; `file:` URLs and paths do not."""
    return "://" in str(location) and not str(location).startswith("file://")


def local_path(location: str | Path) -> Path:
    """The path of a corpus that is not remote."""
    return Path(str(location).removeprefix("file://"))


def without_credentials(url: str) -> str:
    """The URL, which must hold no user, password, query or fragment. Raises DataError that does not repeat them."""
    parts = urlsplit(url)
    where = f"data.corpus_dir={parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    if "@" in parts.netloc:
        raise DataError(f"{where}: its URL holds a user or password; take them out and give them in the environment")
    if parts.query or parts.fragment:
        raise DataError(f"{where}: its URL holds a query; give the folder alone, and keys in the environment")
    if "::" in url:
        raise DataError(f"{where}: chained URLs are not read; give the folder alone")
    return url
