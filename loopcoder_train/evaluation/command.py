"""`loopcoder evaluate RUN`: held-out losses of a checkpoint beside what they must beat, as a table and a file."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from data_pipeline.manifest import write_durably
from data_pipeline.stream import heldout_batches
from loopcoder_train.config import UserError
from loopcoder_train.config.commands import EvaluateOptions
from loopcoder_train.evaluation.baselines import BigramModel, training_sample, unigram_entropy
from loopcoder_train.evaluation.documents import DocumentLosses, DocumentTable
from loopcoder_train.evaluation.heldout import HeldOutReport, evaluate_batches, evaluate_heldout
from loopcoder_train.evaluation.load import LoadedRun, PlainLosses, load_run
from loopcoder_train.evaluation.report import format_report
from loopcoder_train.finetune.plan import Plan
from loopcoder_train.finetune.stream import heldout_rows, heldout_sources
from loopcoder_train.training.figure import FIGURE_FILE, draw_loss_figure
from loopcoder_train.training.metrics import METRICS_FILE, read_metrics

EVALUATION_FILE = "evaluation.json"
MAX_BIGRAM_TOKENS = 32_000_000  # some seconds of work; more than any run sees whose baseline is near


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The result of the command; `step` and `tokens` are those of the checkpoint."""

    step: int
    tokens: int
    report: HeldOutReport
    unigram_entropy: float  # nats per token, of the evaluated tokens
    bigram_loss: float  # nats per token, fitted on as many training tokens as the run has seen (capped)
    bigram_tokens: int  # how many these were
    documents: DocumentTable  # of the held-out losses
    untrained_gates: bool = False  # of a run of one loop that is read with more: they are 0.5 everywhere
    conversations: HeldOutReport | None = None  # of a tuned run: its held-out conversations, what the assistant says

    def to_json(self) -> dict[str, object]:
        """The content of `evaluation.json`."""
        return {
            "step": self.step,
            "tokens": self.tokens,
            "unigram_entropy": self.unigram_entropy,
            "bigram_loss": self.bigram_loss,
            "bigram_tokens": self.bigram_tokens,
            "untrained_gates": self.untrained_gates,
            **self.report.to_json(),
            **({"conversations": self.conversations.to_json()} if self.conversations else {}),
        }


def evaluate_run(options: EvaluateOptions, stream: TextIO | None = None) -> Evaluation:
    """Evaluate, print to `stream` (standard output), and write `evaluation.json` and the loss figure into the run."""
    stream = sys.stdout if stream is None else stream
    run = load_run(
        options.run_dir,
        step=options.step,
        num_loops=options.num_loops,
        device=options.device,
        num_threads=options.num_threads,
    )
    evaluation = _evaluate(run, options)
    other_loops = None if options.num_loops == run.config.model.num_loops else options.num_loops
    path = evaluation_path(run.run_dir, other_loops)
    _write(documents_path(path), json.dumps(evaluation.documents.to_json()) + "\n")
    _write(path, json.dumps(evaluation.to_json(), indent=1) + "\n")
    baselines = {"unigram entropy": evaluation.unigram_entropy, "bigram model": evaluation.bigram_loss}
    figure = draw_run_figure(run.run_dir, baselines, title=f"{run.run_dir.name}, R = {run.config.model.num_loops}")
    if options.json:
        print(json.dumps(evaluation.to_json()), file=stream)
        return evaluation
    print(f"{run.run_dir}: step {evaluation.step}, {evaluation.tokens:,} tokens trained\n", file=stream)
    print(
        format_report(
            evaluation.report, unigram_entropy=evaluation.unigram_entropy, bigram_loss=evaluation.bigram_loss
        ),
        file=stream,
    )
    if evaluation.conversations:
        print(f"\nheld-out conversations of the tuning\n{format_report(evaluation.conversations)}", file=stream)
    print(f"\nwritten: {path}" + (f", {figure}" if figure else ""), file=stream)
    return evaluation


def evaluation_path(run_dir: Path, other_loops: int | None) -> Path:
    """`evaluation.json`, or `evaluation_loops3.json` for another number of loops than the trained one."""
    return run_dir / (EVALUATION_FILE if other_loops is None else f"evaluation_loops{other_loops}.json")


def documents_path(evaluation: Path) -> Path:
    """`evaluation_documents.json` beside `evaluation.json`: what intervals and paired comparisons are made of."""
    return evaluation.with_name(f"{evaluation.stem}_documents.json")


def draw_run_figure(run_dir: Path, baselines: Mapping[str, float], *, title: str) -> Path | None:
    """`loss.png` from the run's metrics; None where a run has none (a copied checkpoint)."""
    metrics = run_dir / METRICS_FILE
    if not metrics.exists():
        return None
    path = run_dir / FIGURE_FILE
    try:
        draw_loss_figure(read_metrics(metrics, ["train", "evaluation"]), path, baselines=baselines, title=title)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error
    return path


def _evaluate(run: LoadedRun, options: EvaluateOptions) -> Evaluation:
    limit = options.max_sequences_per_source or run.config.evaluation.max_sequences_per_source
    batch_size = options.batch_size or run.config.evaluation.batch_size
    length = run.config.data.sequence_length
    losses = DocumentLosses(PlainLosses(run.model, run.device))
    report = evaluate_heldout(losses, run.corpus, length, batch_size, limit)
    heldout = list(heldout_batches(run.corpus, length, batch_size, limit))
    seen = min(run.snapshot.training.tokens, MAX_BIGRAM_TOKENS)
    sample = training_sample(run.corpus, seen, run.config.data.text_share)
    bigram = BigramModel(sample, run.corpus.manifest.vocab_size)
    return Evaluation(
        step=run.snapshot.training.step,
        tokens=run.snapshot.training.tokens,
        report=report,
        unigram_entropy=unigram_entropy(heldout),
        bigram_loss=bigram.loss(heldout),
        bigram_tokens=bigram.num_tokens,
        documents=losses.table,
        untrained_gates=run.untrained_gates,
        conversations=None if run.config.finetune is None else _evaluate_conversations(run, batch_size, limit),
    )


def _evaluate_conversations(run: LoadedRun, batch_size: int, limit: int) -> HeldOutReport:
    plan = Plan.open(run.run_dir)
    batches = heldout_rows(plan, batch_size, limit)
    return evaluate_batches(PlainLosses(run.model, run.device), batches, heldout_sources(plan), plan.folder)


def _write(path: Path, content: str) -> None:
    try:
        write_durably(path, content)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error
