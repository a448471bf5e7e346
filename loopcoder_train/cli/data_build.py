"""`loopcoder data build`: make a corpus."""

from data_pipeline.prepare.build import build_corpus
from data_pipeline.prepare.build_config import BuildConfig
from loopcoder_train.cli import hydra_app
from loopcoder_train.cli.arguments import parse


def run(arguments: list[str]) -> int:
    """Parse, compose, build."""
    command = hydra_app.Command(name="data build", config_name="data_build", schema=BuildConfig, execute=_execute)
    parsed = parse(arguments, paths=("corpus_dir", "tokenizer_path"))
    # The files hold the options themselves, not a group of them; Hydra wants to hear that in the choice too.
    parsed.overrides = [
        f"data_build@_global_={override.partition('=')[2]}" if override.startswith("data_build=") else override
        for override in parsed.overrides
    ]
    return hydra_app.run(command, parsed)


def _execute(config: BuildConfig) -> int:
    build_corpus(config, progress=lambda line: print(line, flush=True))
    return 0
