"""The corpus of a run, opened as its options say. Needs no torch, so the launcher can open it too."""

from data_pipeline.manifest import Corpus
from data_pipeline.reading import Reading
from loopcoder_train.config.data import DataConfig


def open_corpus(data: DataConfig, corpus_dir: str | None = None) -> Corpus:
    """The corpus at `corpus_dir` (default: the run's first), a folder or a URL.

    Raises DataError when it is not there or not whole.
    """
    reading = Reading(
        cache_dir=data.cache_dir,
        cache_bytes=data.cache_bytes,
        chunk_bytes=data.chunk_bytes,
        read_timeout_seconds=data.read_timeout_seconds,
        attempt_timeout_seconds=data.attempt_timeout_seconds,
        read_threads=data.read_threads,
    )
    return Corpus.open(corpus_dir or data.corpus_dir, reading)
