"""From options to the stream of a run, over several corpora, and the position that a checkpoint must have."""

import dataclasses

import pytest

from data_pipeline.errors import DataError
from data_pipeline.manifest import Manifest
from loopcoder_train.config import UserError
from loopcoder_train.config.data import DataConfig, SegmentConfig
from loopcoder_train.config.training import TrainingConfig
from loopcoder_train.training.state import TrainingState
from loopcoder_train.training.token_stream import build_loader, check_position, open_stream
from tests.unit.config.test_config_io import make_config
from tests.unit.data_pipeline.conftest import make_corpus  # noqa: F401  (a fixture)


@pytest.fixture
def config(make_corpus):  # noqa: F811
    sources = {"t": ("text", [30] * 20), "c": ("code", [30] * 20)}
    first = make_corpus(sources, vocab_size=4000, folder="first")
    second = make_corpus({**sources, "rust": ("code", [20] * 20)}, vocab_size=4000, folder="second")
    later = SegmentConfig(from_batch=4, corpus_dir=str(second.directory), sequence_length=16, global_batch_size=8)
    return make_config(
        data=DataConfig(
            corpus_dir=str(first.directory),
            sequence_length=8,
            shuffle_block_tokens=16,
            max_repeats=50,
            segments=[later],
        ),
        training=TrainingConfig(num_steps=10, global_batch_size=4, micro_batch_size=2),
    )


def test_the_stream_goes_over_to_the_larger_corpus(config):
    with open_stream(config) as stream:
        assert [stream.batch_tokens(batch) for batch in (0, 3, 4, 9)] == [32, 32, 128, 128]
        assert stream.tokens(10) == config.total_tokens
        assert stream.count("rust", 4) == 0 < stream.count("rust", 10)
        loader = build_loader(config, stream, 3, 9, data_parallel_rank=1, data_parallel_size=2)
        with loader:
            assert [len(micro) for micro in next(loader)] == [2]
            assert [len(micro) for micro in next(loader)] == [2, 2]


def test_a_vocabulary_that_does_not_fit_names_the_segments_corpus(config, tmp_path):
    manifest = dataclasses.replace(Manifest.load(tmp_path / "second"), vocab_size=5000)
    manifest.save(tmp_path / "second")
    with (
        pytest.raises(
            UserError, match=r"model.vocab_size=4096: must be at least 5000, .* data.segments\[0\].corpus_dir"
        ),
        open_stream(config),
    ):
        pass


def test_a_segment_that_cannot_be_had_is_named(config):
    config.data.segments[0].shares = {"go": 0.5}
    with pytest.raises(DataError, match=r"data.segments\[0\]: data.shares: source 'go'"), open_stream(config):
        pass


def test_a_checkpoint_stands_where_its_counters_say(config):
    with open_stream(config) as stream:
        check_position(stream, stream.state(7), TrainingState(step=5, discarded_batches=2))
        with pytest.raises(
            UserError, match="step 5 and 1 discarded batches would stand at batch 6, the data stands at 7"
        ):
            check_position(stream, stream.state(7), TrainingState(step=5, discarded_batches=1))
