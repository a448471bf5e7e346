"""`loopcoder generate RUN prompt="..."`: continue a prompt with a run's model."""

from loopcoder_train.cli import hydra_app
from loopcoder_train.cli.arguments import parse
from loopcoder_train.config.commands import GenerateOptions


def run(arguments: list[str]) -> int:
    """Parse, compose, generate. The prompt never passes through Hydra's grammar: code is full of `=`, `,` and `${`."""
    command = hydra_app.Command(name="generate", config_name="generate", schema=GenerateOptions, execute=_execute)
    parsed = parse(arguments, positional="run_dir", paths=("run_dir", "prompt_file"), literals=("prompt", "message"))
    return hydra_app.run(command, parsed)


def _execute(options: GenerateOptions) -> int:
    from loopcoder_train.evaluation.generate import generate_text  # imports torch

    generate_text(options)
    return 0
