"""`loopcoder COMMAND ...`: find the command, run it, turn every user's error into one line and exit code 2."""

import importlib
import os
import sys
from collections.abc import Sequence

from data_pipeline.errors import DataError
from loopcoder_train import __version__
from loopcoder_train.config.errors import UserError
from loopcoder_train.config.keys import did_you_mean
from loopcoder_train.config.process import EXIT_BROKEN_PIPE, EXIT_INTERRUPTED, EXIT_USER_ERROR

# Words of the command -> module with `run(arguments) -> exit code`. Imported when asked for: --help must be instant.
COMMANDS = {
    ("plan",): "loopcoder_train.cli.plan",
    ("pretrain",): "loopcoder_train.cli.pretrain",
    ("finetune",): "loopcoder_train.cli.finetune",
    ("evaluate",): "loopcoder_train.cli.evaluate",
    ("diagnose",): "loopcoder_train.cli.diagnose",
    ("generate",): "loopcoder_train.cli.generate",
    ("sweep",): "loopcoder_train.cli.sweep",
    ("report",): "loopcoder_train.cli.report",
    ("runs",): "loopcoder_train.cli.runs",
    ("stop",): "loopcoder_train.cli.stop",
    ("checkpoint", "list"): "loopcoder_train.cli.checkpoint_list",
    ("checkpoint", "verify"): "loopcoder_train.cli.checkpoint_verify",
    ("checkpoint", "prune"): "loopcoder_train.cli.checkpoint_prune",
    ("data", "build"): "loopcoder_train.cli.data_build",
    ("data", "show"): "loopcoder_train.cli.data_show",
    ("data", "audit"): "loopcoder_train.cli.data_audit",
    ("data", "report"): "loopcoder_train.cli.data_report",
}

HELP = """\
loopcoder COMMAND [option=value ...]      pretrain Parallel Loop Transformers

  loopcoder data build                     make the token corpus that runs read
  loopcoder data show [CORPUS]             what a corpus is made of
  loopcoder data audit RUN                 what a run consumed, and whether its records agree
  loopcoder data report [CORPUS]           where every document went, as a table and a page
  loopcoder plan experiment=NAME           memory, traffic and days of a run, before a GPU is rented
  loopcoder pretrain experiment=NAME       train; the same command again resumes
  loopcoder finetune experiment=sft model.init_from=RUN      tune a run's model on conversations
  loopcoder runs [DIR]                     the runs below a folder: state, step, loss, speed, where
  loopcoder stop RUN                       ask a run, here or in a SLURM job, to save and stop
  loopcoder checkpoint list RUN            the checkpoints of a run; also: verify RUN, prune RUN
  loopcoder evaluate RUN                   held-out losses of a run, per source, language and loop
  loopcoder diagnose RUN                   what each loop does to states, attention and output
  loopcoder sweep experiment=study         matched runs that differ in one option only
  loopcoder report SWEEP | RUN...          one page: verdict, curves, figures, proof of the match
  loopcoder generate RUN prompt="TEXT"     continue a prompt with a run's model

First steps:
  loopcoder data build
  loopcoder pretrain experiment=quickstart
  loopcoder evaluate runs/quickstart

  loopcoder COMMAND --help                 the command's options and examples
  loopcoder COMMAND ... --cfg job          every option with its value; nothing is run
  loopcoder COMMAND -m ... option=1,2,3    one run per value

Exit codes: 0 done, 2 something you can fix (one line says what), 1 a failure, 130 interrupted,
75 time was up and the run is saved: start it again. docs/operations.md has them all."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code; prints a user's error as one line, without a traceback."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _dispatch(arguments)
    except (UserError, DataError) as error:
        print_error(error)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("loopcoder: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        drop_output()
        return EXIT_BROKEN_PIPE


def drop_output() -> None:
    """The reader of our pipe has seen enough (`| head`): what is still buffered must not raise at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_error(error: object) -> None:
    """`loopcoder: error: ...` on stderr, whatever the message holds as one line."""
    print(f"loopcoder: error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP)
        return 0
    if arguments[0] == "--version":
        print(f"loopcoder {__version__}")
        return 0
    for words, module in COMMANDS.items():
        if tuple(arguments[: len(words)]) == words:
            return importlib.import_module(module).run(arguments[len(words) :])
    return _unknown_command(arguments)


def _unknown_command(arguments: list[str]) -> int:
    first = arguments[0]
    subcommands = [words[1] for words in COMMANDS if words[0] == first and len(words) > 1]
    if subcommands and len(arguments) > 1 and arguments[1] not in ("-h", "--help"):
        meant = did_you_mean(arguments[1], subcommands) or f"; use {' or '.join(subcommands)}"
        raise UserError(f"{first} {arguments[1]}: unknown command{meant}")
    if subcommands:
        for subcommand in subcommands:
            _dispatch([first, subcommand, "--help"])
            print()
        return 0
    known = [words[0] for words in COMMANDS]
    raise UserError(f"{first}: unknown command{did_you_mean(first, known)}; `loopcoder --help` lists them")


if __name__ == "__main__":
    sys.exit(main())
