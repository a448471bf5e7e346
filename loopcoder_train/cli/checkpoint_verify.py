"""`loopcoder checkpoint verify RUN`: read and hash every file of a run's checkpoints."""

from pathlib import Path

from loopcoder_train.cli import hydra_app
from loopcoder_train.cli.arguments import parse
from loopcoder_train.cli.checkpoint_run import checkpoint_options
from loopcoder_train.cli.main import print_error
from loopcoder_train.config.commands import CheckpointVerifyOptions
from loopcoder_train.config.errors import UserError
from loopcoder_train.config.process import EXIT_USER_ERROR


def run(arguments: list[str]) -> int:
    """Parse, compose, verify."""
    command = hydra_app.Command(
        name="checkpoint verify", config_name="checkpoint_verify", schema=CheckpointVerifyOptions, execute=_execute
    )
    return hydra_app.run(command, parse(arguments, positional="run_dir", paths=("run_dir",)))


def _execute(options: CheckpointVerifyOptions) -> int:
    from loopcoder_train.checkpoint.survey import size_of, verify_run  # imports torch

    run_dir = Path(options.run_dir)
    checkpoint_options(run_dir)
    good, bad = 0, 0
    for path, committed, reason in verify_run(run_dir, options.step):
        if reason is None:
            good += 1
            print(f"{path}: good, {size_of(path) / 1e6:,.1f} MB", flush=True)
        elif committed or options.step is not None:
            bad += 1
            print_error(reason)
        else:
            print(f"{path}: not committed; left by a killed save, the next save removes it", flush=True)
    if not good and not bad:
        wanted = "no checkpoint" if options.step is None else f"no checkpoint of step {options.step}"
        raise UserError(f"run_dir={run_dir}: holds {wanted}; `loopcoder checkpoint list {run_dir}` shows what it has")
    return EXIT_USER_ERROR if bad else 0
