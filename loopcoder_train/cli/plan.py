"""`loopcoder plan`: what a run would need and how long it would take, before any GPU is there. Imports no torch."""

import json
from typing import Any

from loopcoder_train.cli import hydra_app
from loopcoder_train.cli.arguments import parse
from loopcoder_train.config.plan import PlanOptions
from loopcoder_train.planning.plan import make_plan
from loopcoder_train.planning.report import plan_text, search_text
from loopcoder_train.planning.search import search, search_dict


def run(arguments: list[str]) -> int:
    """Parse, compose, plan."""
    command = hydra_app.Command(name="plan", config_name="plan", schema=PlanOptions, execute=plan, prepare=_for_search)
    return hydra_app.run(command, parse(arguments, paths=("run_dir", "data.corpus_dir")))


def _for_search(values: dict[str, Any]) -> None:
    """A search chooses the layout: the one that the experiment has must not stand in its way."""
    if values["search"]:
        values["gpus"] = values["gpus"] or values["parallel"]["world_size"] or 1
        sizes = {f"{axis}_parallel_size": 1 for axis in ("tensor", "pipeline", "context", "data")}
        values["parallel"] |= sizes | {"world_size": 1, "sequence_parallel": False}
        values["training"]["micro_batch_size"] = 1


def plan(options: PlanOptions) -> int:
    """Print the plan of the options' layout, or the layouts that a search finds. That nothing fits is no error."""
    if options.search:
        result = search(options)
        print(json.dumps(search_dict(options, result)) if options.json else search_text(options, result))
    else:
        made = make_plan(options)
        print(json.dumps(made.to_dict()) if options.json else plan_text(options, made))
    return 0
