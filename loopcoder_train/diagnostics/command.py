"""`loopcoder diagnose RUN`: every lens on held-out documents of a checkpoint, as a table, a file and figures."""

import json
import sys
from pathlib import Path
from typing import TextIO

from data_pipeline.manifest import write_durably
from loopcoder_train.config import UserError
from loopcoder_train.config.commands import DiagnoseOptions
from loopcoder_train.diagnostics.diagnosis import Diagnosis
from loopcoder_train.diagnostics.figures import draw_figures
from loopcoder_train.diagnostics.measure import measure
from loopcoder_train.diagnostics.samples import select_samples
from loopcoder_train.diagnostics.table import format_diagnosis
from loopcoder_train.evaluation.load import LoadedRun, load_run

DIAGNOSTICS_NAME = "diagnostics"  # .json and the folder of figures


def diagnose_run(options: DiagnoseOptions, stream: TextIO | None = None) -> Diagnosis:
    """Diagnose, print to `stream` (standard output), and write `diagnostics.json` and figures into the run.

    UserError or DataError for whatever `load_run` and `select_samples` refuse, and for files that cannot be written.
    """
    stream = sys.stdout if stream is None else stream
    run = load_run(
        options.run_dir,
        step=options.step,
        num_loops=options.num_loops,
        device=options.device,
        num_threads=options.num_threads,
    )
    diagnosis = diagnose(run, options)
    path = diagnostics_path(run)
    try:
        figures = _write(diagnosis, path, f"{run.run_dir.name}, step {diagnosis.step}")
    except OSError as error:
        raise UserError(f"{error.filename or path}: cannot be written ({error.strerror})") from error
    if options.json:
        print(json.dumps(diagnosis.to_json()), file=stream)
        return diagnosis
    print(
        f"{run.run_dir}: step {diagnosis.step}, R = {diagnosis.num_loops} (trained with "
        f"{diagnosis.trained_num_loops}); {diagnosis.num_samples} samples of {diagnosis.num_documents} held-out "
        f"documents, {diagnosis.sample_tokens:,} tokens, {diagnosis.too_short} shorter ones passed over\n",
        file=stream,
    )
    print(format_diagnosis(diagnosis), file=stream)
    print(f"\nwritten: {path}, {figures[0].parent}/*.png", file=stream)
    return diagnosis


def diagnose(run: LoadedRun, options: DiagnoseOptions) -> Diagnosis:
    """All lenses on the run's held-out documents."""
    length = run.config.data.sequence_length
    selection = select_samples(run.corpus, length, options.num_samples, options.min_sample_tokens)
    found = measure(run.model, selection.rows, most_queries=options.attention_queries)
    return Diagnosis(
        step=run.snapshot.training.step,
        tokens=run.snapshot.training.tokens,
        num_loops=run.model.config.num_loops,
        trained_num_loops=run.config.model.num_loops,
        untrained_gates=run.untrained_gates,
        num_layers=run.model.config.num_layers,
        num_documents=selection.num_documents,
        sample_tokens=selection.tokens,
        samples_by_source=selection.by_source,
        too_short=selection.too_short,
        attention_queries=options.attention_queries,
        min_sample_tokens=options.min_sample_tokens,
        estimates=found.estimates(),
    )


def diagnostics_path(run: LoadedRun) -> Path:
    """`diagnostics.json`, or `diagnostics_loops3.json` for another number of loops than the trained one."""
    loops = run.model.config.num_loops
    other = "" if loops == run.config.model.num_loops else f"_loops{loops}"
    return run.run_dir / f"{DIAGNOSTICS_NAME}{other}.json"


def _write(diagnosis: Diagnosis, path: Path, title: str) -> list[Path]:
    """The figures; the file goes last and at once, so that it never speaks of figures that are not there."""
    folder = path.with_suffix("")
    folder.mkdir(exist_ok=True)
    figures = draw_figures(diagnosis, folder, title)
    write_durably(path, json.dumps(diagnosis.to_json(), indent=1) + "\n")
    return figures
