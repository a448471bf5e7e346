"""`loopcoder evaluate RUN`: held-out losses of a run."""

from loopcoder_train.cli import hydra_app
from loopcoder_train.cli.arguments import parse
from loopcoder_train.config.commands import EvaluateOptions


def run(arguments: list[str]) -> int:
    """Parse, compose, evaluate."""
    command = hydra_app.Command(name="evaluate", config_name="evaluate", schema=EvaluateOptions, execute=_execute)
    return hydra_app.run(command, parse(arguments, positional="run_dir", paths=("run_dir",)))


def _execute(options: EvaluateOptions) -> int:
    from loopcoder_train.evaluation.command import evaluate_run  # imports torch

    evaluate_run(options)
    return 0
