"""What a run reads: batches to train on and what is held out, from a corpus or, in a tuning run, from conversations.

build.py puts a run together and needs not know which. Both streams have numbered batches, a state below 1 KB that
checkpoints keep, and the names of their sources.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.manifest import Corpus
from data_pipeline.segments import SegmentedStream
from data_pipeline.substitutes import SUBSTITUTES_FILE, SubstituteLedger
from loopcoder_train.config import OnBadBlock, RunConfig
from loopcoder_train.engines.engine import Engine, MicroBatch
from loopcoder_train.evaluation.heldout import HeldOutReport, evaluate_batches, evaluate_heldout
from loopcoder_train.evaluation.probe import probe_batch, spread_rows
from loopcoder_train.finetune.plan import Plan
from loopcoder_train.finetune.stream import ConversationStream, heldout_rows, heldout_sources, open_conversations
from loopcoder_train.training.token_stream import open_stream

Interrupted = Callable[[], bool]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunData:
    """stream: of the batches. evaluate: held-out losses, asked before each forward pass whether to stop.

    notes: what is to be said when a run starts, one line each. tokenizer_hash: of its tokens. probe: the rows that
    telemetry looks at.
    """

    stream: SegmentedStream | ConversationStream
    tokenizer_hash: str
    notes: list[str]
    evaluate: Callable[[Engine, Interrupted], HeldOutReport]
    probe: Callable[[], MicroBatch]


@contextmanager
def open_run_data(config: RunConfig, rank: int) -> Iterator[RunData]:
    """The data of a run; its files are closed at the end. Raises DataError or UserError when it cannot be read."""
    if config.finetune is not None:
        yield _of_conversations(config, verify=rank == 0)
        return
    with open_stream(config) as stream:
        if config.data.on_bad_block is OnBadBlock.substitute:
            for corpus in stream.corpora:
                corpus.on_bad_block = SubstituteLedger(Path(config.run_dir) / SUBSTITUTES_FILE, corpus)
        # evaluation holds all of the run against its first segment
        yield _of_corpus(config, stream, stream.segments[0].stream.corpus)


def _of_corpus(config: RunConfig, stream: SegmentedStream, corpus: Corpus) -> RunData:
    length, evaluation = config.data.sequence_length, config.evaluation

    def evaluate(engine: Engine, interrupted: Interrupted) -> HeldOutReport:
        how_much = evaluation.batch_size, evaluation.max_sequences_per_source
        return evaluate_heldout(engine, corpus, length, *how_much, interrupted=interrupted)

    return RunData(
        stream=stream,
        tokenizer_hash=corpus.manifest.tokenizer_hash,
        notes=[f"mixture: {note}" for note in stream.notes],
        evaluate=evaluate,
        probe=lambda: probe_batch(corpus, length, config.telemetry.num_sequences),
    )


def _of_conversations(config: RunConfig, *, verify: bool) -> RunData:
    plan, evaluation, count = Plan.open(Path(config.run_dir)), config.evaluation, config.telemetry.num_sequences
    if verify:
        plan.verify()
    stream = open_conversations(config, plan)

    def evaluate(engine: Engine, interrupted: Interrupted) -> HeldOutReport:
        rows = heldout_rows(plan, evaluation.batch_size, evaluation.max_sequences_per_source)
        return evaluate_batches(engine, rows, heldout_sources(plan), plan.folder, interrupted=interrupted)

    whole = f"plan {plan.plan_hash[:12]}: {plan.note()}, {stream.epochs(config.training.num_steps):.2f} epochs"
    return RunData(
        stream=stream,
        tokenizer_hash=plan.tokenizer_hash,
        notes=[*(source.note() for source in plan.sources), whole],
        evaluate=evaluate,
        probe=lambda: spread_rows(list(heldout_rows(plan, 1, count)), count),
    )
