"""Options for a corpus behind a URL: no credentials get into a configuration, and a cache is asked for."""

import pytest

from loopcoder_train.config import DataConfig, OnBadBlock, UserError


@pytest.mark.parametrize(
    "url",
    ["https://me:s3cret@host/corpus", "s3://s3cret@bucket/corpus", "https://host/corpus?sig=s3cret",
     "https://host/corpus#s3cret"],
)  # fmt: skip
def test_a_url_with_credentials_is_refused_and_not_repeated(url):
    with pytest.raises(UserError, match=r"^data\.corpus_dir=\w+://(host|bucket)/corpus: .*environment$") as error:
        DataConfig(corpus_dir=url, cache_dir="/cache")
    assert "s3cret" not in str(error.value)


def test_a_url_needs_a_cache_and_a_folder_does_not():
    with pytest.raises(UserError, match=r"data\.cache_dir=None: must be set"):
        DataConfig(corpus_dir="s3://bucket/corpus")
    assert DataConfig(corpus_dir="s3://bucket/corpus", cache_dir="/cache").on_bad_block is OnBadBlock.stop
    for folder in ("corpora/default", "/a@b/c?d#e", "file:///corpora/mine"):
        DataConfig(corpus_dir=folder)


@pytest.mark.parametrize(
    "option", ["cache_bytes", "chunk_bytes", "read_timeout_seconds", "attempt_timeout_seconds", "read_threads"]
)
def test_sizes_and_times_are_positive(option):
    with pytest.raises(UserError, match=rf"data\.{option}=0"):
        DataConfig(**{option: 0})
