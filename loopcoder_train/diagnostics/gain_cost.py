"""Gain against cost, loop by loop: what a loop r >= 2 still changes in the output, and what its offset costs.

Gain: output shift KL(p(r) || p(r-1)). Cost: Omega(r), absolute and relative to ||h(r-1)||. The paper's reading: loops
pay while the gain outweighs the cost; the two have no common unit, so no single number says where they cross.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from loopcoder_train.diagnostics.confidence import Estimate
from loopcoder_train.diagnostics.measurements import Key


@dataclass(frozen=True, slots=True)
class GainCost:
    """One loop r >= 2."""

    loop: int
    gain: Estimate
    cost: Estimate
    relative_cost: Estimate

    def to_json(self) -> dict[str, object]:
        """`{"loop": r, "gain": ..., "cost": ..., "relative_cost": ...}`."""
        names = ("gain", "cost", "relative_cost")
        return {"loop": self.loop} | {name: getattr(self, name).to_json() for name in names}


def gain_cost(estimates: Mapping[Key, Estimate], num_loops: int) -> list[GainCost]:
    """The series for r = 2..R; empty for one loop and for sequential loops, which have no offset."""
    names = ("output_kl", "offset_cost", "offset_cost_relative")
    series = []
    for loop in range(2, num_loops + 1):
        values = [estimates.get(Key(loop, name)) for name in names]
        if None not in values:
            series.append(GainCost(loop, *values))
    return series
