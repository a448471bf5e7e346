"""`loopcoder checkpoint list RUN`: every checkpoint of a run, and which rule keeps it."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from loopcoder_train.cli import hydra_app
from loopcoder_train.cli.arguments import parse
from loopcoder_train.cli.checkpoint_run import checkpoint_options
from loopcoder_train.cli.table import aligned
from loopcoder_train.config.commands import CheckpointListOptions
from loopcoder_train.config.run import CheckpointConfig

if TYPE_CHECKING:
    from loopcoder_train.checkpoint.survey import Entry

HEADINGS = ("step", "saved (UTC)", "MB", "state", "kept by", "mirrored", "why")


def run(arguments: list[str]) -> int:
    """Parse, compose, list."""
    command = hydra_app.Command(
        name="checkpoint list", config_name="checkpoint_list", schema=CheckpointListOptions, execute=_execute
    )
    return hydra_app.run(command, parse(arguments, positional="run_dir", paths=("run_dir",)))


def _execute(options: CheckpointListOptions) -> int:
    from loopcoder_train.checkpoint.survey import survey  # imports torch

    run_dir = Path(options.run_dir)
    rules = checkpoint_options(run_dir) or CheckpointConfig()
    mirror = rules.mirror_of(run_dir)
    entries = survey(run_dir, keep_last=rules.keep_last, keep_every_steps=rules.keep_every_steps, mirror=mirror)
    if options.json:
        for entry in entries:
            print(json.dumps(asdict(entry)))
    elif entries:
        print(aligned([HEADINGS, *map(_row, entries)]))
    else:
        print(f"{run_dir}: no checkpoints")
    return 0


def _row(entry: "Entry") -> tuple[str, ...]:
    megabytes = f"{entry.size_bytes / 1e6:,.1f}"
    kept = entry.kept_by or ("the mirror" if entry.mirrored == "only there" else "nothing")
    when = entry.saved_at.removesuffix("+00:00").replace("T", " ")
    return str(entry.step), when, megabytes, entry.state, kept, entry.mirrored or "-", entry.reason
