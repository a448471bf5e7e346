"""What is known of a sweep, or of any runs, gathered for the page and for report.json.

The journey: folders -> facts and results of every arm -> matches by seed and stage -> verdict -> `Report`, whose fields
are all that page and file show.
"""

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from data_pipeline.errors import DataError
from data_pipeline.manifest import write_durably
from loopcoder_train import __version__
from loopcoder_train.config import UserError
from loopcoder_train.config.compare import changes_result, differences
from loopcoder_train.sweep.arms import SWEEP_FILE, Arm, Sweep
from loopcoder_train.sweep.facts import RunFacts, read_facts
from loopcoder_train.sweep.matching import OWN_WEIGHTS, Match, inherited, match_runs
from loopcoder_train.sweep.results import ArmResult, folders_of, read_result
from loopcoder_train.sweep.stages import FINETUNE, PRETRAIN
from loopcoder_train.sweep.verdict import Verdict, judge
from loopcoder_train.training.metrics import finite

FORMAT, VERSION = "loopcoder-sweep-report", 1
_MACHINE_OPTIONS = ("engine", "parallel.world_size", "training.precision", "training.device")
_TRAINED = (PRETRAIN, FINETUNE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Proof:
    """The match of the runs of one stage and seed; `title` says which."""

    title: str
    match: Match


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """`failed`: label -> why an arm has no result. `environment`: of the runs, and of the machine that reports."""

    title: str
    axis: str | None
    verdict: Verdict
    arms: list[ArmResult]
    failed: dict[str, str]
    proofs: list[Proof]
    environment: dict[str, str]

    @property
    def matched(self) -> bool:
        """Whether every proof holds."""
        return all(proof.match.matched for proof in self.proofs)


def report_of_sweep(folder: Path) -> Report:
    """Of a sweep's finished arms. UserError when no matched arm has finished."""
    sweep = Sweep.read(folder)
    found: list[tuple[Arm, dict[str, RunFacts], ArmResult]] = []
    failed: list[tuple[Arm, str]] = []
    for arm in sweep.arms:
        try:
            found.append((arm, *_read_arm(folder, arm, sweep.tuned)))
        except UserError as error:
            failed.append((arm, str(error)))
    if not any(arm.reference is None for arm, _, _ in found):
        why = failed[0][1]
        raise UserError(f"{folder}: no arm of the sweep has finished ({why}); give the `loopcoder sweep` command again")
    several = len({arm.seed for arm in sweep.arms}) > 1
    matched = [(arm, facts) for arm, facts, _ in found if arm.reference is None]
    stages = _TRAINED if sweep.tuned else _TRAINED[:1]
    proofs = _proofs(matched, stages, sweep.axis, several)
    return _report(
        title=str(folder),
        axis=sweep.axis,
        arms=[result for _, _, result in found],
        proofs=proofs,
        failed={_title(arm, several): why for arm, why in failed},
        unfinished=[_title(arm, several) for arm, _ in failed if arm.reference is None],
        first=matched[0][1][PRETRAIN],
    )


def report_of_runs(run_dirs: Sequence[Path]) -> Report:
    """Of any runs. Matched when they differ in one option, or in none, and that one is the axis.

    Of tuned runs the pretrainings must match, too; their loss is that on the corpus, after tuning.
    """
    facts = [_facts(run_dir) for run_dir in run_dirs]
    axis = _only_difference(facts)
    arms = [_arm_of_run(one, axis) for one in facts]
    results = [read_result(arm, one, one.run_dir, None) for arm, one in zip(arms, facts, strict=True)]
    labels = [arm.label for arm in arms]
    proofs = []
    if all(one.config.finetune for one in facts):
        sources = [_pretraining_of(one) for one in facts]
        facts = [_tuned_from(source, one) for source, one in zip(sources, facts, strict=True)]
        match = match_runs(list(zip(labels, sources, strict=True)), axis if axis and inherited(axis) else None)
        proofs.append(Proof(title="their pretrainings", match=match))
    proofs.append(Proof(title="the runs", match=match_runs(list(zip(labels, facts, strict=True)), axis)))
    title = " and ".join(str(run_dir) for run_dir in run_dirs[:3]) + (" ..." if len(run_dirs) > 3 else "")
    return _report(title=title, axis=axis, arms=results, proofs=proofs, failed={}, unfinished=[], first=facts[0])


def _report(
    *,
    title: str,
    axis: str | None,
    arms: list[ArmResult],
    proofs: list[Proof],
    failed: dict[str, str],
    unfinished: list[str],
    first: RunFacts,
) -> Report:
    matches = [proof.match for proof in proofs]
    return Report(
        title=title,
        axis=axis,
        verdict=judge([arm for arm in arms if arm.reference is None], matches, unfinished),
        arms=arms,
        failed=failed,
        proofs=proofs,
        environment=environment(first),
    )


def _read_arm(folder: Path, arm: Arm, tuned: bool) -> tuple[dict[str, RunFacts], ArmResult]:
    pretrained, finetuned = folders_of(folder, arm, tuned)
    facts = {PRETRAIN: _facts(pretrained)}
    if finetuned is not None:
        facts[FINETUNE] = _tuned_from(facts[PRETRAIN], _facts(finetuned))
    return facts, read_result(arm, facts[PRETRAIN], pretrained, facts.get(FINETUNE))


def _tuned_from(source: RunFacts, tuned: RunFacts) -> RunFacts:
    return replace(tuned, pretraining_commit=source.commit)


def _pretraining_of(tuned: RunFacts) -> RunFacts:
    """Of the run whose checkpoint a tuned run came from. UserError when it is not there any more."""
    checkpoint = tuned.first_weights if tuned.origin_commit else None
    if checkpoint is None:
        raise UserError(f"{tuned.run_dir}: has no record of the checkpoint that it was tuned from; compare other runs")
    return _facts(Path(checkpoint).parents[1])  # RUN/checkpoints/step-...


def _facts(run_dir: Path) -> RunFacts:
    """Whatever is missing or damaged there is a UserError, which costs a sweep this arm only."""
    try:
        return read_facts(run_dir)
    except DataError as error:
        raise UserError(str(error)) from error
    except OSError as error:
        raise UserError(f"{error.filename or run_dir}: cannot be read ({error.strerror}); restore it") from error


def _proofs(
    arms: list[tuple[Arm, dict[str, RunFacts]]], stages: Sequence[str], axis: str, several: bool
) -> list[Proof]:
    """Arms of one seed with each other; and the first arms of all seeds, in what no seed changes."""
    proofs = []
    for stage in stages:
        axis_of_stage = axis if stage == PRETRAIN or inherited(axis) else None
        by_seed: dict[int, list[tuple[Arm, RunFacts]]] = {}
        for arm, facts in arms:
            by_seed.setdefault(arm.seed, []).append((arm, facts[stage]))
        for seed, runs in by_seed.items():
            proofs.append(_proof(f"{stage}, seed {seed}" if several else stage, runs, axis_of_stage))
        if several:
            firsts = [runs[0] for runs in by_seed.values()]
            proofs.append(_proof(f"{stage}, across seeds", firsts, axis_of_stage, other_seeds=True))
    return proofs


def _proof(title: str, arms: list[tuple[Arm, RunFacts]], axis: str | None, *, other_seeds: bool = False) -> Proof:
    runs = [(_title(arm, other_seeds), facts) for arm, facts in arms]
    meant = [{"seed": arm.seed} | ({axis: arm.value} if axis else {}) for arm, _ in arms]
    return Proof(title=title, match=match_runs(runs, axis, other_seeds=other_seeds, meant=meant))


def _only_difference(facts: Sequence[RunFacts]) -> str | None:
    """The one option that changes results and differs; None where none or several do. Tuned runs have own weights."""
    keys = [key for one in facts[1:] for key, _, _ in differences(facts[0].options, one.options) if changes_result(key)]
    tuned = all(one.config.finetune for one in facts)
    different = [key for key in dict.fromkeys(keys) if not (tuned and key == OWN_WEIGHTS)]
    return different[0] if len(different) == 1 and different[0] != "seed" else None


def _arm_of_run(facts: RunFacts, axis: str | None) -> Arm:
    name = str(facts.run_dir)
    value = facts.options.get(axis) if axis else None
    label = f"{name} ({axis.rpartition('.')[2]} = {value})" if axis else name
    return Arm(name=name, label=label, value=value, seed=facts.config.seed, reference=None, changes={})


def _title(arm: Arm, several: bool) -> str:
    return f"{arm.label}, seed {arm.seed}" if several else arm.label


def environment(facts: RunFacts) -> dict[str, str]:
    """What the runs were told, and this machine."""
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {
        **{key: str(facts.options[key]) for key in _MACHINE_OPTIONS},
        "loopcoder": __version__,
        "torch": version("torch"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "reported on": f"{device}, {len(os.sched_getaffinity(0))} CPUs",
    }


def numbers(report: Report) -> dict[str, Any]:
    """The report as JSON values: the content of report.json."""
    content = {"format": FORMAT, "version": VERSION, **asdict(report)}
    for arm in content["arms"]:
        del arm["documents"]  # evaluation_documents.json has them
        arm["inference"] = {str(loops): loss for loops, loss in arm["inference"].items()}
    return finite(json.loads(json.dumps(content, default=_name_of)))


def write_json(report: Report, path: Path) -> Path:
    """Write `numbers`. UserError when that cannot be done."""
    return _write("json", path, json.dumps(numbers(report), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_page(report: Report, path: Path) -> Path:
    """Write the page. UserError when that cannot be done."""
    from loopcoder_train.sweep.report.page import render

    return _write("html", path, render(report))


def _name_of(value: object) -> str:
    assert isinstance(value, Enum), value
    return value.name


def _write(option: str, path: Path, content: str) -> Path:
    try:
        write_durably(path, content)
    except OSError as error:
        raise UserError(f"{option}={path}: cannot be written ({error.strerror}); name another file") from error
    return path


def is_sweep(folder: Path) -> bool:
    """Whether `folder` is a sweep's."""
    return (folder / SWEEP_FILE).is_file()
