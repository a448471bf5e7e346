"""`loopcoder runs [DIR]`: every run below a folder, with its state."""

import json
from dataclasses import asdict
from pathlib import Path

from launch import slurm
from loopcoder_train.cli import hydra_app
from loopcoder_train.cli.arguments import parse
from loopcoder_train.cli.run_state import RunState, find_runs, state_of
from loopcoder_train.cli.table import aligned
from loopcoder_train.config.commands import RunsOptions
from loopcoder_train.training.progress import scaled

HEADINGS = ("run", "state", "step", "loss", "tokens/s", "effective", "where, why")


def run(arguments: list[str]) -> int:
    """Parse, compose, list."""
    command = hydra_app.Command(name="runs", config_name="runs", schema=RunsOptions, execute=_execute)
    return hydra_app.run(command, parse(arguments, positional="folder", paths=("folder",)))


def _execute(options: RunsOptions) -> int:
    runs = find_runs(Path(options.folder))
    queue = slurm.queue() if any(map(slurm.was_submitted, runs)) else []
    states = [state_of(run_dir, queue) for run_dir in runs]
    if options.json:
        for state in states:
            print(json.dumps(asdict(state)))
    elif states:
        print(aligned([HEADINGS, *map(_row, states)]))
    else:
        print(f"{options.folder}: no runs")
    return 0


def _row(state: RunState) -> tuple[str, ...]:
    return (
        state.run_dir,
        state.state,
        f"{state.step}/{state.num_steps}",
        "" if state.loss is None else f"{state.loss:.4f}",
        "" if state.tokens_per_second is None else scaled(state.tokens_per_second),
        "" if state.effective_training_share is None else f"{state.effective_training_share:.0%}",
        state.where or state.reason,
    )
