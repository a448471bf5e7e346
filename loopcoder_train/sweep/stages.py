"""What is done with an arm, in order: each stage is one command of `loopcoder`, with a folder below the arm's.

pretrain -> finetune -> evaluate both at the trained R, the pretrained one also at the largest R of
`sweep.inference_loops` (loop r does not know R, so that one pass shows every smaller R) -> diagnose.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from loopcoder_train.config import RunConfig
from loopcoder_train.config.io import to_dict
from loopcoder_train.config.keys import flatten, in_quotes
from loopcoder_train.config.sweep import SweepConfig
from loopcoder_train.diagnostics.command import DIAGNOSTICS_NAME
from loopcoder_train.evaluation.command import documents_path, evaluation_path
from loopcoder_train.sweep.arms import Arm, arm_config

PRETRAIN, FINETUNE = "pretrain", "finetune"  # folders of an arm, and its first stages
STAGES_FOLDER = "stages"

# Where and how a run computes: the same in both trainings of an arm, whatever the experiment of the tuning says.
_SHARED = ("engine", "parallel", "kernels", "launch", "deepspeed", "guards")
_SHARED_TRAINING = ("precision", "activation_checkpointing", "device", "deterministic", "num_threads")


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One command. `trains`: it makes steps, holds the lock of `run_dir` and resumes by itself.

    source: the run whose weights it starts from. outputs: the files that it leaves; the first tells the `step`.
    """

    name: str
    arguments: list[str]  # behind `loopcoder`
    run_dir: Path
    trains: bool
    source: Path | None = None
    outputs: tuple[Path, ...] = ()


def stages_of(config: SweepConfig, arm: Arm, pretrain_arguments: list[str]) -> list[Stage]:
    """`pretrain_arguments`: what the user gave to the sweep, without its own options."""
    folder = Path(config.run_dir) / arm.name
    first = folder / PRETRAIN
    train = ["pretrain", *pretrain_arguments, *arm.arguments(), f"run_dir={_quoted(first)}"]
    stages = [Stage(name=PRETRAIN, arguments=train, run_dir=first, trains=True)]
    trained = [first]
    if config.sweep.finetune:
        tuned = folder / FINETUNE
        tune = ["finetune", *shared_options(arm_config(config, arm)), *config.sweep.finetune, f"seed={arm.seed}"]
        tune += [f"model.init_from={_quoted(first)}", f"run_dir={_quoted(tuned)}"]
        stages.append(Stage(name=FINETUNE, arguments=tune, run_dir=tuned, trains=True, source=first))
        trained.append(tuned)
    stages += [_evaluation(config, run_dir) for run_dir in trained]
    loops = other_loops(config, arm)
    if loops is not None:
        stages.append(_evaluation(config, first, loops))
    look = ["diagnose", f"run_dir={_quoted(first)}", *config.sweep.diagnose]
    outputs = (first / f"{DIAGNOSTICS_NAME}.json",)
    stages.append(Stage(name="diagnose", arguments=look, run_dir=first, trains=False, outputs=outputs))
    return stages


def _evaluation(config: SweepConfig, run_dir: Path, loops: int | None = None) -> Stage:
    held_out = f"max_sequences_per_source={config.evaluation.max_sequences_per_source}"  # the same after tuning
    arguments = ["evaluate", f"run_dir={_quoted(run_dir)}", held_out, *config.sweep.evaluate]
    name = f"evaluate-{run_dir.name}"
    if loops is not None:
        arguments, name = [*arguments, f"num_loops={loops}"], f"{name}-loops{loops}"
    output = evaluation_path(run_dir, loops)
    outputs = (output, documents_path(output))
    return Stage(name=name, arguments=arguments, run_dir=run_dir, trains=False, outputs=outputs)


def other_loops(config: SweepConfig, arm: Arm) -> int | None:
    """The R at which an arm is evaluated besides its own; None where its own shows all."""
    model, most = arm_config(config, arm).model, max(config.sweep.inference_loops, default=0)
    return None if most <= model.num_loops else most


def shared_options(config: RunConfig) -> list[str]:
    """Arguments that make a tuning run compute where and how the pretraining does."""
    values = flatten({key: value for key, value in to_dict(config).items() if key in _SHARED})
    training = to_dict(config.training)
    values |= {f"training.{key}": training[key] for key in _SHARED_TRAINING}
    default = flatten(to_dict(type(config.launch)()), "launch.")
    return [f"{key}={_argument(value)}" for key, value in values.items() if default.get(key, ...) != value]


def _argument(value: object) -> str:
    if value is None:
        return "null"
    return _quoted(value) if isinstance(value, str) else json.dumps(value)


def _quoted(value: object) -> str:
    """A text for Hydra's grammar, where every other character means something."""
    text = str(value)
    if text.isascii() and text.replace("_", "a").replace("-", "a").replace("/", "a").replace(".", "a").isalnum():
        return text
    return in_quotes(text)
