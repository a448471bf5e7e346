"""The runs of a sweep: one for each value and seed, and reference arms beside them. From options alone.

An arm is the sweep's own configuration with a few options changed. Matched arms change the swept option (and, with
several seeds, the seed) and nothing else; reference arms change more and are never called matched.
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from data_pipeline.manifest import write_durably
from loopcoder_train.config import ModelConfig, RunConfig, UserError
from loopcoder_train.config.io import from_dict, to_dict
from loopcoder_train.config.sweep import LOOPS, Reference, SweepConfig
from loopcoder_train.model.counts import forward_flops, pairs_of_lengths

SWEEP_FILE = "sweep.json"
_VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """One run of the sweep. `name`: its folder below the sweep's; `changes`: options that differ from the sweep's."""

    name: str
    label: str  # for people
    value: Any  # of the swept option
    seed: int
    reference: str | None  # name of a Reference; None: a matched arm
    changes: dict[str, Any]
    estimated_flops: float = 1.0  # of its pretraining, forward, with one document per sequence

    def arguments(self) -> list[str]:
        """The changes as arguments of `loopcoder pretrain`."""
        return [f"{key}={_text(value)}" for key, value in self.changes.items()]


def _text(value: Any) -> str:
    """A value in Hydra's grammar, which takes no quoted keys."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_text(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_text, value)) + "]"
    return "null" if value is None else json.dumps(value) if isinstance(value, bool | float) else str(value)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """What `sweep.json` holds."""

    axis: str
    arms: list[Arm]
    tuned: bool  # whether the arms are tuned on conversations, too

    def write(self, folder: Path) -> None:
        """Write `sweep.json`."""
        write_durably(folder / SWEEP_FILE, json.dumps({"version": _VERSION, **asdict(self)}, indent=1) + "\n")

    @classmethod
    def read(cls, folder: Path) -> "Sweep":
        """Read it. UserError when it is no sweep of this program."""
        path = folder / SWEEP_FILE
        try:
            content = json.loads(path.read_bytes())
            if content.pop("version") != _VERSION:
                raise UserError(f"{path}: another version wrote it; give the same `loopcoder sweep` command again")
            content["arms"] = [Arm(**arm) for arm in content["arms"]]
            return cls(**content)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); give the folder of a sweep") from error
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise UserError(f"{path}: is no sweep that this program wrote; give the folder of a sweep") from error


def plan_sweep(config: SweepConfig) -> Sweep:
    """All arms, value by value, then the references, for each seed. UserError for a value that no run can have."""
    options = config.sweep
    seeds = options.seeds or [config.seed]
    _refuse_merging(config)
    arms = [_matched(config, value, seed, len(seeds)) for seed in seeds for value in options.typed_values]
    for seed in seeds:
        for kind in options.references:
            arms += [_reference(config, kind, loops, seed, len(seeds)) for loops in options.reference_loops]
    made: dict[str, str] = {}
    planned = []
    for arm in arms:
        run = arm_config(config, arm)  # a rule that an arm breaks is told before any of them starts
        content = json.dumps(to_dict(run))
        if content in made and arm.reference is None:
            raise UserError(
                f"sweep.values={options.values}: {made[content]} and {arm.name} are the same run; leave one out"
            )
        made.setdefault(content, arm.name)
        flops = _flops_per_token(run.model, run.data.sequence_length) * run.total_tokens
        planned.append(replace(arm, estimated_flops=flops))
    return Sweep(axis=options.axis, arms=planned, tuned=bool(options.finetune))


def _refuse_merging(config: SweepConfig) -> None:
    """Hydra adds a mapping on the command line to the one that is there: an arm would have the keys of both."""
    axis, base = config.sweep.axis, to_dict(config)
    for part in axis.split("."):
        base = base[part]
    if base and any(isinstance(value, dict) for value in config.sweep.typed_values):
        raise UserError(f"sweep.axis={axis}: is a mapping that the sweep sets already ({base}); leave it out there")


def arm_config(config: SweepConfig, arm: Arm) -> RunConfig:
    """The pretraining of an arm, without its folder. UserError for what its rules refuse."""
    try:
        return with_changes(config, arm.changes)
    except UserError as error:
        raise UserError(f"arm {arm.name}: {error}") from error


def with_changes(config: RunConfig, changes: dict[str, Any]) -> RunConfig:
    """The run of `config`, a sweep's too, with some options changed. UserError for what its rules refuse."""
    values = to_dict(config)
    values.pop("sweep", None)
    for key, value in changes.items():
        group = values
        *path, last = key.split(".")
        for part in path:
            group = group[part]
        group[last] = value
    return from_dict(RunConfig, values)


def _matched(config: SweepConfig, value: Any, seed: int, num_seeds: int) -> Arm:
    axis = config.sweep.axis
    return Arm(
        name=_name(f"{axis.rpartition('.')[2]}={_text(value)}", seed, num_seeds),
        label=f"R = {value}" if axis == LOOPS else f"{axis.rpartition('.')[2]} = {_text(value)}",
        value=value,
        seed=seed,
        reference=None,
        changes={axis: value, "seed": seed},
    )


def _reference(config: SweepConfig, kind: Reference, loops: int, seed: int, num_seeds: int) -> Arm:
    changes = {
        Reference.flops: _for_as_many_flops,
        Reference.depth: lambda config, loops: {
            LOOPS: 1,
            "model.num_layers": loops * config.model.num_layers,
        },
        Reference.sequential: lambda config, loops: {
            LOOPS: loops,
            "model.loop_kind": "sequential",
            "model.embedding_scale": 1.0,
            "model.hidden_scale": 1.0,
            "model.normalize_between_loops": False,
        },
    }[kind](config, loops)
    what = {
        Reference.flops: f"R = {loops}, FLOP-matched",
        Reference.depth: f"R = 1, {loops} x layers",
        Reference.sequential: f"R = {loops}, sequential",
    }
    return Arm(
        name=_name(f"reference-{kind.name},num_loops={loops}", seed, num_seeds),
        label=what[kind],
        value=loops,
        seed=seed,
        reference=kind.name,
        changes={**changes, "seed": seed},
    )


def _for_as_many_flops(config: SweepConfig, loops: int) -> dict[str, Any]:
    """R loops for the steps that cost what the whole arm with the fewest loops costs; the same stream, its beginning.

    Estimated with one document per sequence; what was really spent is measured, and reported.
    """
    fewest = min(int(value) for value in config.sweep.typed_values)
    steps = config.training.num_steps
    dear, cheap = (
        _flops_per_token(replace(config.model, num_loops=number), config.data.sequence_length)
        for number in (loops, fewest)
    )
    return {
        LOOPS: loops,
        "training.num_steps": max(1, round(steps * cheap / dear)),
        "data.planned_batches": config.data.planned_batches or steps,
    }


def _flops_per_token(model: ModelConfig, length: int) -> float:
    """Forward, of a sequence that is one document."""
    return forward_flops(model, length, pairs_of_lengths([length], model.window_left)) / length


def _name(first: str, seed: int, num_seeds: int) -> str:
    return f"{first},seed={seed}" if num_seeds > 1 else first
