"""`loopcoder checkpoint prune RUN keep_last=N`: delete old checkpoints of a run that nobody is writing to."""

from contextlib import ExitStack
from pathlib import Path

from loopcoder_train.cli import hydra_app
from loopcoder_train.cli.arguments import parse
from loopcoder_train.cli.checkpoint_run import checkpoint_options
from loopcoder_train.cli.submit import LAUNCHER_LOCK
from loopcoder_train.config.commands import CheckpointPruneOptions
from loopcoder_train.config.errors import UserError
from loopcoder_train.runtime.lock import RunLock


def run(arguments: list[str]) -> int:
    """Parse, compose, prune."""
    command = hydra_app.Command(
        name="checkpoint prune", config_name="checkpoint_prune", schema=CheckpointPruneOptions, execute=_execute
    )
    return hydra_app.run(command, parse(arguments, positional="run_dir", paths=("run_dir",)))


def _execute(options: CheckpointPruneOptions) -> int:
    from loopcoder_train.checkpoint.survey import prune_run  # imports torch

    run_dir = Path(options.run_dir)
    own = checkpoint_options(run_dir)
    every = options.keep_every_steps
    if every is None and own is not None:
        every = own.keep_every_steps
    with ExitStack() as stack:
        # The launcher's too: between two attempts of a run that is being restarted nobody holds the run's.
        for name in (LAUNCHER_LOCK, "run"):
            stack.enter_context(RunLock(run_dir, name).acquire(wait_seconds=0))
        try:
            what = {"keep_last": options.keep_last, "keep_every_steps": every or None}
            pruned = prune_run(run_dir, **what, dry_run=options.dry_run)
        except OSError as error:
            raise UserError(f"{error.filename or run_dir}: cannot be deleted ({error.strerror or error})") from error
    for name in pruned.names:
        print(f"{'would delete' if options.dry_run else 'deleted'} {name}")
    free = "would be freed" if options.dry_run else "freed"
    print(
        f"{run_dir}: {len(pruned.names)} folders, {pruned.freed_bytes:,} bytes {free}; "
        f"the newest good checkpoint, step {pruned.kept.step}, was verified and stays"
    )
    return 0
