"""`loopcoder report SWEEP` or `loopcoder report RUN...`: one page and its numbers."""

from itertools import islice
from pathlib import Path

from loopcoder_train.cli import hydra_app
from loopcoder_train.cli.arguments import FLAGS, parse, quote
from loopcoder_train.config.errors import require
from loopcoder_train.config.sweep import CompareOptions

PAGE_FILE = "report.html"


def run(arguments: list[str]) -> int:
    """Parse, compose, report. Every argument that is no option is a folder."""
    folders, rest = _sorted(arguments)
    if folders:
        rest.append(f"runs=[{','.join(quote(folder) for folder in folders)}]")
    command = hydra_app.Command(name="report", config_name="report", schema=CompareOptions, execute=report)
    return hydra_app.run(command, parse(rest, paths=("html", "json")))


def _sorted(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Folders, and the rest: options, flags and what belongs to flags."""
    folders: list[str] = []
    rest: list[str] = []
    coming = iter(arguments)
    for text in coming:
        if text.startswith("-"):
            rest += [text, *(islice(coming, 1) if FLAGS.get(text) else ())]
        else:
            (folders if _is_folder(text) else rest).append(text)
    return folders, rest


def _is_folder(text: str) -> bool:
    key, equals, _ = text.partition("=")
    return not equals or "/" in key or Path(text).exists()


def report(options: CompareOptions) -> int:
    """Write page and numbers; print the verdict and where they are."""
    from loopcoder_train.sweep.report import report as reports  # imports torch

    folders = [Path(run) for run in options.runs]
    sweeps = [folder for folder in folders if reports.is_sweep(folder)]
    require(not sweeps or len(folders) == 1, "runs", options.runs, "mixes sweeps and other folders", "give one sweep")
    made = reports.report_of_sweep(folders[0]) if sweeps else reports.report_of_runs(folders)
    page = Path(options.html or ((sweeps[0] if sweeps else Path()) / PAGE_FILE))
    numbers = Path(options.json or page.with_suffix(".json"))
    reports.write_json(made, numbers)
    reports.write_page(made, page)
    print(made.verdict.sentence)
    print(f"written: {page}, {numbers}")
    return 0
