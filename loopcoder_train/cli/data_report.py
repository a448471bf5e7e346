"""`loopcoder data report`: where every document of a corpus went, as tables and as a page."""

from pathlib import Path

from data_pipeline.manifest import Corpus
from data_pipeline.report.funnel import make_report
from data_pipeline.report.table import describe
from data_pipeline.report.write import PAGE_FILE, write_json, write_page
from loopcoder_train.cli import hydra_app
from loopcoder_train.cli.arguments import parse
from loopcoder_train.config.commands import ReportOptions


def run(arguments: list[str]) -> int:
    """Parse, compose, report."""
    command = hydra_app.Command(name="data report", config_name="data_report", schema=ReportOptions, execute=_execute)
    return hydra_app.run(command, parse(arguments, positional="corpus_dir", paths=("corpus_dir", "html", "json")))


def _execute(options: ReportOptions) -> int:
    report = make_report(Corpus.open(options.corpus_dir))
    page = write_page(report, Path(options.html) if options.html else Path(options.corpus_dir) / PAGE_FILE)
    print(describe(report))
    print(f"\npage: {page}")
    if options.json:
        print(f"numbers: {write_json(report, Path(options.json))}")
    return 0
