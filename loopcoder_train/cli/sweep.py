"""`loopcoder sweep`: matched runs that differ in one option, through all their stages, and a report about them."""

import sys
from functools import partial
from pathlib import Path

from loopcoder_train.cli import hydra_app
from loopcoder_train.cli.arguments import parse
from loopcoder_train.cli.pretrain import PATHS
from loopcoder_train.cli.report import report
from loopcoder_train.config.errors import UserError
from loopcoder_train.config.guards import OnBadStep
from loopcoder_train.config.process import EXIT_FAILURE
from loopcoder_train.config.sweep import CompareOptions, SweepConfig
from loopcoder_train.runtime.lock import RunLock

SWEEP_LOCK = "sweep"
_OWN = ("sweep", "run_dir")  # options that no stage gets


def run(arguments: list[str]) -> int:
    """Parse, compose, sweep."""
    parsed = parse(arguments, paths=PATHS)
    if parsed.multirun:
        raise UserError("--multirun: is what a sweep does by itself; give sweep.values=[...]")
    for_stages = [*parsed.flags, *(text for text in parsed.overrides if not _is_own(text))]
    command = hydra_app.Command(
        name="sweep", config_name="sweep", schema=SweepConfig, execute=partial(sweep, for_stages=for_stages)
    )
    return hydra_app.run(command, parsed)


def _is_own(override: str) -> bool:
    key = override.lstrip("+~").partition("=")[0]
    return key.partition(".")[0] in _OWN


def sweep(config: SweepConfig, for_stages: list[str]) -> int:
    """Run what is not done; report on what is. Returns 0 when every arm is done, else 1, or the code of a stop."""
    from loopcoder_train.cli.sweep_check import check_later_stages  # these import torch
    from loopcoder_train.sweep.arms import arm_config, plan_sweep
    from loopcoder_train.sweep.runner import StageProcesses, Stopped, run_arms, run_arms_together, undone
    from loopcoder_train.sweep.slurm import SlurmStages
    from loopcoder_train.sweep.stages import stages_of

    folder = Path(config.run_dir)
    with RunLock(folder, name=SWEEP_LOCK):
        planned = plan_sweep(config)
        if config.guards.spike in (OnBadStep.skip, OnBadStep.rewind):
            _say(
                f"guards.spike={config.guards.spike.name}: an arm that finds a spike leaves out a batch and matches "
                "the others no more; guards.spike=ignore keeps all batches in all arms"
            )
        arms = [(arm, stages_of(config, arm, for_stages)) for arm in planned.arms]
        left = [(arm_config(config, arm), undone(folder / arm.name, stages)) for arm, stages in arms]
        check_later_stages(left, config.sweep.axis)
        planned.write(folder)
        run_all, stages = (
            (run_arms_together, SlurmStages(config.launch)) if config.on_slurm else (run_arms, StageProcesses(_say))
        )
        try:
            with stages.listening():
                outcomes = run_all(folder, arms, stages.run, _say)
        except Stopped as stop:
            _say("stopped; the same command goes on")
            return stop.code
        failed = [outcome for outcome in outcomes if outcome.failed]
        for outcome in failed:
            _say(f"{outcome.arm.name}: {outcome.failed} failed with exit code {outcome.code}")
        if any(outcome.failed is None and outcome.arm.reference is None for outcome in outcomes):
            report(CompareOptions(runs=[config.run_dir]))
        return EXIT_FAILURE if failed else 0


def _say(text: str) -> None:
    print(f"sweep: {text}", file=sys.stderr, flush=True)
