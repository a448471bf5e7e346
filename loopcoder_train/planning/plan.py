"""Everything `loopcoder plan` says about one layout, as plain numbers."""

from dataclasses import asdict, dataclass
from typing import Any

from loopcoder_train.config.plan import PlanOptions
from loopcoder_train.model.counts import ParameterCounts, count_parameters
from loopcoder_train.planning.estimate import RunLength, StepEstimate, compute_costs, estimate_step, run_length
from loopcoder_train.planning.memory import Memory, pass_memory, update_memory
from loopcoder_train.planning.rank import Rank, ranks_of
from loopcoder_train.planning.schedule import extrapolated_step_seconds, live_pairs, unit_bubble
from loopcoder_train.planning.traffic import Traffic, step_traffic
from loopcoder_train.planning.weights import stage_parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePlan:
    """One rank of a pipeline stage; the others of the stage are like it."""

    stage: int
    num_layers: int
    parameters: int  # of this rank
    live_pairs: int  # (loop, micro-batch) pairs between forward and backward at most
    passes: Memory  # at the fullest moment of its forward and backward passes
    update: Memory  # at the fullest moment of AdamW's step
    traffic: Traffic  # per step

    @property
    def memory_bytes(self) -> int:
        """At its fullest moment."""
        return max(self.passes.total, self.update.total)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A layout in numbers."""

    parameters: ParameterCounts
    stages: list[StagePlan]
    unit_bubble: float  # idle / useful time with equal passes, (P - 1) / (R M)
    bubble: float  # with this layout's layers per stage and the head, exchanges aside
    estimate: StepEstimate
    length: RunLength
    usable_bytes: float

    @property
    def fullest(self) -> StagePlan:
        """The stage that needs most memory."""
        return max(self.stages, key=lambda stage: stage.memory_bytes)

    @property
    def fits(self) -> bool:
        """Whether every stage stays within what the plan may fill."""
        return self.fullest.memory_bytes <= self.usable_bytes

    def to_dict(self) -> dict[str, Any]:
        """For `json=true`: the numbers, with sums."""
        values = asdict(self)
        for stage, described in zip(self.stages, values["stages"], strict=True):
            described["passes"]["total"] = stage.passes.total
            described["update"]["total"] = stage.update.total
            described["traffic"]["total"] = stage.traffic.total
        return values | {"fits": self.fits, "fullest_stage": self.fullest.stage}


def make_plan(options: PlanOptions) -> Plan:
    """The plan of a run's own layout."""
    ranks = ranks_of(options)
    return Plan(
        parameters=count_parameters(options.model),
        stages=[_stage_plan(rank) for rank in ranks],
        unit_bubble=unit_bubble(len(ranks), options.model.num_loops, ranks[0].micro_batches),
        bubble=_bubble(options, ranks),
        estimate=estimate_step(options, ranks),
        length=run_length(options),
        usable_bytes=options.usable_bytes,
    )


def _stage_plan(rank: Rank) -> StagePlan:
    return StagePlan(
        stage=rank.stage,
        num_layers=rank.num_layers,
        parameters=stage_parameters(rank),
        live_pairs=live_pairs(rank.pipeline, rank.model.num_loops, rank.micro_batches, rank.stage),
        passes=pass_memory(rank),
        update=update_memory(rank),
        traffic=step_traffic(rank),
    )


def _bubble(options: PlanOptions, ranks: list[Rank]) -> float:
    """Time that all stages together idle / compute, over one step."""
    costs = [compute_costs(options, rank) for rank in ranks]
    count = ranks[0].micro_batches
    useful = sum(count * (sum(stage.forward) + sum(stage.backward)) for stage in costs)
    idle = len(ranks) * extrapolated_step_seconds(costs, count) - useful
    return max(0.0, idle / useful)  # rounding
