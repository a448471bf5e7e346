"""`loopcoder diagnose RUN`: what each loop does, on held-out documents."""

from loopcoder_train.cli import hydra_app
from loopcoder_train.cli.arguments import parse
from loopcoder_train.config.commands import DiagnoseOptions


def run(arguments: list[str]) -> int:
    """Parse, compose, diagnose."""
    command = hydra_app.Command(name="diagnose", config_name="diagnose", schema=DiagnoseOptions, execute=_execute)
    return hydra_app.run(command, parse(arguments, positional="run_dir", paths=("run_dir",)))


def _execute(options: DiagnoseOptions) -> int:
    from loopcoder_train.diagnostics.command import diagnose_run  # imports torch

    diagnose_run(options)
    return 0
