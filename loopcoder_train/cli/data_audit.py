"""`loopcoder data audit RUN`: a run's consumption, recomputed and compared with what it recorded."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.epochs import SourceEpochs
from data_pipeline.segments import SegmentedStream
from loopcoder_train.cli import hydra_app
from loopcoder_train.cli.arguments import parse
from loopcoder_train.cli.table import aligned
from loopcoder_train.config.commands import AuditOptions
from loopcoder_train.config.errors import require
from loopcoder_train.config.io import RUN_CONFIG_FILE, read_run_config
from loopcoder_train.config.process import EXIT_USER_ERROR
from loopcoder_train.training.metrics import METRICS_FILE, all_records
from loopcoder_train.training.token_stream import open_stream

if TYPE_CHECKING:
    from loopcoder_train.training.audit import Audit

MOST_DIFFERENCES = 20  # that are shown
HEADINGS = ("source", "side", "language", "epochs", "tokens by position", "tokens as read")


def run(arguments: list[str]) -> int:
    """Parse, compose, audit."""
    command = hydra_app.Command(name="data audit", config_name="data_audit", schema=AuditOptions, execute=_execute)
    return hydra_app.run(command, parse(arguments, positional="run_dir", paths=("run_dir",)))


def _execute(options: AuditOptions) -> int:
    from loopcoder_train.checkpoint import checkpoints_of  # these import torch
    from loopcoder_train.training.audit import audit_run
    from loopcoder_train.training.resume import RunSnapshot

    run_dir = Path(options.run_dir)
    run_yaml, metrics = run_dir / RUN_CONFIG_FILE, run_dir / METRICS_FILE
    require(run_yaml.exists(), "run_dir", run_dir, "holds no run", "`loopcoder runs` lists those there are")
    require(metrics.exists(), "run_dir", run_dir, f"has no {METRICS_FILE} yet", "train first")
    saved = [(checkpoint.step, RunSnapshot.from_json(checkpoint.state)) for checkpoint in checkpoints_of(run_dir)]
    config = read_run_config(run_yaml)
    reads_corpus = config.finetune is None
    require(reads_corpus, "run_dir", run_dir, "was tuned on conversations, not on a corpus", "give a pretraining run")
    with open_stream(config) as stream:
        audit = audit_run(stream, all_records(metrics), saved)
        print(aligned([HEADINGS, *_rows(stream, audit)]))
    print(
        f"step {audit.step}: {audit.batches:,} batches read, {audit.discarded:,} of them discarded, "
        f"{sum(recomputed for recomputed, _ in audit.tokens.values()):,} tokens trained"
    )
    compared = f"{audit.records:,} train records and {audit.checkpoints} checkpoint(s)"
    if not audit.differences:
        print(f"audit matches: {compared}, to the token")
        return 0
    for line in audit.differences[:MOST_DIFFERENCES]:
        print(line, file=sys.stderr)
    print(f"audit differs: {len(audit.differences):,} difference(s) in {compared}", file=sys.stderr)
    return EXIT_USER_ERROR


def _rows(stream: SegmentedStream, audit: "Audit") -> list[tuple[str, ...]]:
    sources, block = stream.sources(), stream.segments[0].stream.shuffle_block_tokens
    rows = []
    for name, (recomputed, recorded) in audit.tokens.items():
        if name not in sources:
            rows.append((name, "-", "-", "-", f"{recomputed:,}", f"{recorded:,}"))
            continue
        info = sources[name]
        # What was consumed by discarded batches counts as shown, hence the epochs of all batches that were read.
        epochs = SourceEpochs(info, block).epochs_of(stream.count(name, audit.batches))
        read = "-" if recorded is None else f"{recorded:,}"
        rows.append((name, info.kind, info.language, f"{epochs:.4f}", f"{recomputed:,}", read))
    return rows
