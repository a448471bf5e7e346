"""`loopcoder sweep`: which option takes which values, what is done with every arm, and what stands beside them."""

from dataclasses import dataclass, field
from enum import Enum

import yaml

from loopcoder_train.config.compare import changes_result
from loopcoder_train.config.errors import UserError, require, require_positive
from loopcoder_train.config.keys import did_you_mean, dotted_keys
from loopcoder_train.config.launch import LaunchKind
from loopcoder_train.config.run import RunConfig

LOOPS = "model.num_loops"


class Reference(Enum):
    """An arm outside of the verdict, beside an arm of R loops of a sweep over `model.num_loops`."""

    flops = "flops"  # R loops for fewer steps: the FLOPs of the arm with the fewest loops
    depth = "depth"  # one loop over R * L layers: the same depth, with R times the layers' parameters
    sequential = "sequential"  # h(r) = f(h(r-1)): what PLT's parallel loops are measured against


@dataclass(kw_only=True, slots=True)
class SweepOptions:
    """The sweep's own options. Lists of arguments are those of the named commands."""

    axis: str = LOOPS
    values: list[str] = field(default_factory=lambda: ["1", "2", "3", "4"])
    seeds: list[int] = field(default_factory=list)  # every value once per seed; empty: `seed` alone
    references: list[Reference] = field(default_factory=list)
    reference_loops: list[int] = field(default_factory=lambda: [2])  # the R of the reference arms
    finetune: list[str] = field(default_factory=lambda: ["experiment=sft"])  # empty: no tuning
    inference_loops: list[int] = field(default_factory=lambda: [1, 2, 3, 4])  # of pretrained arms, at evaluation
    evaluate: list[str] = field(default_factory=list)
    diagnose: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        known = dotted_keys(RunConfig)
        is_option = self.axis in known and not any(key.startswith(self.axis + ".") for key in known)
        require(is_option, "sweep.axis", self.axis, f"must be one option of a run{did_you_mean(self.axis, known)}")
        rule = "changes no result, so every arm would be the same run"
        require(changes_result(self.axis), "sweep.axis", self.axis, rule, "name an option such as model.num_loops")
        require(
            self.axis not in ("seed", "model.init_from"), "sweep.axis", self.axis, "has its own place", "sweep.seeds"
        )
        self._check_axis_stage()
        self._check_own_places()
        for name in ("values", "seeds", "references", "reference_loops"):
            given = getattr(self, name)
            require(len(set(given)) == len(given), f"sweep.{name}", given, "must differ from each other")
        require(len(self.values) > 0, "sweep.values", self.values, "must hold at least one value")
        require(all(seed >= 0 for seed in self.seeds), "sweep.seeds", self.seeds, "must be 0 or more")
        require_positive(sweep__inference_loops=min(self.inference_loops, default=1))
        if self.references and self.axis != LOOPS:
            raise UserError(
                f"sweep.references={[one.name for one in self.references]}: stand beside a sweep over {LOOPS}, not "
                f"sweep.axis={self.axis}; leave them out"
            )
        require(
            all(loops >= 2 for loops in self.reference_loops),
            "sweep.reference_loops",
            self.reference_loops,
            "must be 2 or more: with one loop they are the plain model",
        )

    def _check_axis_stage(self) -> None:
        group = self.axis.partition(".")[0]
        rule = "is an option of loopcoder finetune, and arms differ in their pretraining"
        require(group != "finetune", "sweep.axis", self.axis, rule, "name an option of loopcoder pretrain")

    def _check_own_places(self) -> None:
        """What a sweep gives its stages itself: a report needs the newest weights, at every arm's own R."""
        for name in ("evaluate", "diagnose"):
            for text in getattr(self, name):
                key = text.lstrip("+~").partition("=")[0]
                rule, remedy = f"{key} is given to the stages by the sweep", "leave it out; see sweep.inference_loops"
                require(key not in ("run_dir", "step", "num_loops"), f"sweep.{name}", getattr(self, name), rule, remedy)

    @property
    def typed_values(self) -> list[object]:
        """The values as YAML reads them."""
        return [yaml.safe_load(value) for value in self.values]


@dataclass(kw_only=True, slots=True)
class SweepConfig(RunConfig):
    """A run, which every arm is but for the swept option, and the sweep. `run_dir` has all of it."""

    sweep: SweepOptions = field(default_factory=SweepOptions)

    def __post_init__(self) -> None:
        RunConfig.__post_init__(self)  # super() without arguments does not find a class with slots
        for name in ("fresh", "accept_config_changes"):
            require(not getattr(self, name), name, True, "is no option of a sweep", "give another run_dir")
        require(self.dry_run is None, "dry_run", self.dry_run, "is an option of loopcoder pretrain", "leave it out")
        stop = self.training.stop_after_step
        require(stop is None, "training.stop_after_step", stop, "leaves a sweep with unfinished arms", "leave it out")
        dry = self.launch.dry_run
        require(not dry, "launch.dry_run", dry, "leaves a sweep without runs", "give it to loopcoder pretrain")
        require(self.launch.start_workers, "launch.start_workers", False, "leaves a sweep without runs", "leave it out")

    @property
    def on_slurm(self) -> bool:
        """Whether every arm is a chain of jobs."""
        return self.launch.kind is LaunchKind.slurm


@dataclass(kw_only=True, slots=True)
class CompareOptions:
    """`loopcoder report`: one page about a sweep or about any runs."""

    runs: list[str] = field(default_factory=list)
    html: str = ""  # where the page goes; default: report.html in the sweep, or in the current folder
    json: str = ""  # where the numbers go; default: beside the page

    def __post_init__(self) -> None:
        require(len(self.runs) > 0, "runs", self.runs, "must name the folder of a sweep, or of runs")
        for name in ("html", "json"):
            value = getattr(self, name)
            require(
                value.lower() not in ("true", "false"), name, value, f"must name a file, as in {name}=report.{name}"
            )
