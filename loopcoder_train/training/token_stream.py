"""From a run's configuration to its token stream and its batches. Needs no torch, so the launcher can check it too."""

from collections.abc import Iterator
from contextlib import contextmanager

from data_pipeline.loader import BatchStream, StreamLoader
from data_pipeline.manifest import Corpus
from data_pipeline.segments import SegmentedStream, SegmentOptions
from loopcoder_train.config.errors import UserError, require
from loopcoder_train.config.run import RunConfig
from loopcoder_train.training.corpus import open_corpus
from loopcoder_train.training.state import TrainingState


@contextmanager
def open_stream(config: RunConfig) -> Iterator[SegmentedStream]:
    """The token stream of the whole run: a function of corpora, shares and seed only. Its files are closed at the end.

    Raises UserError when a corpus's tokens do not fit the model's vocabulary, DataError when its sources cannot give
    the shares that are asked for.
    """
    corpora: dict[str, Corpus] = {}
    try:
        for segment in config.segments:
            if segment.corpus_dir not in corpora:
                corpora[segment.corpus_dir] = open_corpus(config.data, segment.corpus_dir)
                check_vocabulary(config, corpora[segment.corpus_dir], segment.options["corpus_dir"])
        yield plan_stream(config, corpora)
    finally:
        for corpus in corpora.values():
            corpus.close()


def check_vocabulary(config: RunConfig, corpus: Corpus, option: str = "data.corpus_dir") -> None:
    """UserError when the corpus has tokens that the model has no rows for."""
    vocab_size = corpus.manifest.vocab_size
    require(
        vocab_size <= config.model.vocab_size,
        "model.vocab_size",
        config.model.vocab_size,
        f"must be at least {vocab_size}, the vocabulary of {option}={corpus.location}",
        f"set model.vocab_size={vocab_size} or more",
    )


def plan_stream(config: RunConfig, corpora: dict[str, Corpus]) -> SegmentedStream:
    """The segments of the run over the opened `corpora`, by folder."""
    wanted = [
        SegmentOptions(
            first_batch=segment.first_batch,
            planned_batches=segment.planned_batches,
            corpus=corpora[segment.corpus_dir],
            sequence_length=segment.sequence_length,
            global_batch_size=segment.global_batch_size,
            text_share=segment.text_share,
            shares=segment.shares,
            max_repeats=segment.max_repeats,
        )
        for segment in config.segments
    ]
    return SegmentedStream.plan(wanted, seed=config.seed, shuffle_block_tokens=config.data.shuffle_block_tokens)


def check_position(stream: BatchStream, saved: dict[str, object], state: TrainingState) -> None:
    """The saved data position belongs to this stream and to the saved step and discarded batches."""
    batch = stream.check_state(saved)
    if batch != state.batches:
        discarded = f" and {state.discarded_batches} discarded batches" if state.discarded_batches else ""
        raise UserError(
            f"checkpoint state: step {state.step}{discarded} would stand at batch {state.batches}, the data stands at "
            f"{batch}; use an older checkpoint"
        )


def build_loader(
    config: RunConfig,
    stream: BatchStream,
    first_batch: int,
    steps_left: int,
    *,
    data_parallel_rank: int,
    data_parallel_size: int,
) -> StreamLoader:
    """This rank's micro-batches from `first_batch` on, read ahead by a thread.

    Without end: nobody knows how many batches will be discarded. The plan covers `training.num_steps` of them; behind
    `steps_left`, of this attempt, nothing is read ahead.
    """
    return StreamLoader(
        stream,
        start_step=first_batch,
        num_steps=None,
        expected_steps=steps_left,
        micro_batch_size=config.training.micro_batch_size,
        data_parallel_rank=data_parallel_rank,
        data_parallel_size=data_parallel_size,
        prefetch_steps=config.data.prefetch_steps,
    )
