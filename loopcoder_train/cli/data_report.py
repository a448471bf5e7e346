"""`loopcoder data report`: where every document of a corpus went, as tables and as a page."""

from pathlib import Path

from data_pipeline.manifest import Corpus
from data_pipeline.reading import Reading
from data_pipeline.report.funnel import make_report
from data_pipeline.report.table import describe
from data_pipeline.report.write import PAGE_FILE, write_json, write_page
from loopcoder_train.cli import hydra_app
from loopcoder_train.cli.arguments import parse
from loopcoder_train.config.commands import ReportOptions
from loopcoder_train.config.errors import UserError

PATHS = ("corpus_dir", "html", "json", "cache_dir")


def run(arguments: list[str]) -> int:
    """Parse, compose, report."""
    command = hydra_app.Command(name="data report", config_name="data_report", schema=ReportOptions, execute=_execute)
    return hydra_app.run(command, parse(arguments, positional="corpus_dir", paths=PATHS))


def _execute(options: ReportOptions) -> int:
    corpus = Corpus.open(options.corpus_dir, Reading(cache_dir=options.cache_dir))
    if corpus.is_remote and not options.html:
        raise UserError(f"html: is not set, and {options.corpus_dir} cannot be written to; give html=report.html")
    report = make_report(corpus)
    page = write_page(report, Path(options.html) if options.html else corpus.directory / PAGE_FILE)
    print(describe(report))
    print(f"\npage: {page}")
    if options.json:
        print(f"numbers: {write_json(report, Path(options.json))}")
    return 0
