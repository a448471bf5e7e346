"""`loopcoder data show`: print what a corpus is made of."""

from data_pipeline.manifest import Corpus
from data_pipeline.reading import Reading
from data_pipeline.show import describe
from loopcoder_train.cli import hydra_app
from loopcoder_train.cli.arguments import parse
from loopcoder_train.config.commands import ShowOptions


def run(arguments: list[str]) -> int:
    """Parse, compose, show."""
    command = hydra_app.Command(name="data show", config_name="data_show", schema=ShowOptions, execute=_execute)
    return hydra_app.run(command, parse(arguments, positional="corpus_dir", paths=("corpus_dir", "cache_dir")))


def _execute(options: ShowOptions) -> int:
    print(describe(Corpus.open(options.corpus_dir, Reading(cache_dir=options.cache_dir))))
    return 0
