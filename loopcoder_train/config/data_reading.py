"""How the tokens come to a run, as far as that changes none of them."""

from dataclasses import dataclass
from enum import Enum
from urllib.parse import urlsplit

from loopcoder_train.config.errors import UserError, require, require_positive


class OnBadBlock(Enum):
    """What becomes of training tokens whose checksum does not match."""

    stop = "stop"
    substitute = "substitute"  # shown as ends of documents, never asked for as labels, written to the ledger


@dataclass(kw_only=True, slots=True)
class DataReading:
    """Options of `data` for damaged blocks and for a corpus behind a URL, which is read through a cache on a disk."""

    on_bad_block: OnBadBlock = OnBadBlock.stop
    cache_dir: str | None = None  # on a local disk, shared by the processes of a node; needed for a URL
    cache_bytes: int = 68_719_476_736  # at most so much lies below cache_dir
    chunk_bytes: int = 131_072  # what one request fetches and the cache keeps as one file
    read_timeout_seconds: float = 300.0  # one read with all its attempts; then the run stops
    attempt_timeout_seconds: float = 30.0  # one attempt
    read_threads: int = 16  # requests at a time, per process, for what comes next

    def check_reading(self, corpus_dir: str) -> None:
        """Raises UserError for options that do not fit together, and for a URL that holds credentials."""
        require_positive(
            data__cache_bytes=self.cache_bytes,
            data__chunk_bytes=self.chunk_bytes,
            data__read_timeout_seconds=self.read_timeout_seconds,
            data__attempt_timeout_seconds=self.attempt_timeout_seconds,
            data__read_threads=self.read_threads,
        )
        if "://" not in corpus_dir or corpus_dir.startswith("file://"):
            return
        url = urlsplit(corpus_dir)
        if "@" in url.netloc or url.query or url.fragment:  # run.yaml and messages would repeat them
            raise UserError(
                f"data.corpus_dir={url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}: its URL holds a user, a "
                "password or a query; give the folder alone, and credentials in the environment"
            )
        require(
            self.cache_dir is not None,
            "data.cache_dir",
            self.cache_dir,
            "must be set for a corpus behind a URL",
            "give a folder on a local disk of every node",
        )
