"""Megatron's pipeline schedules with loops as virtual stages: what runs when, how much is alive, how long it idles.

A unit is one loop of one micro-batch on one stage, forward and then backward. R = 1 is plain 1F1B. For R >= 2 the
micro-batches go in groups of P: a stage runs loop 1 of the group, then loop 2, ..., before the next group; backward
loops come in reverse. Each stage runs a number of forward passes ahead, then one forward and one backward in turn.
"""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward or backward pass of loop `loop` (1..R) of micro-batch `micro_batch` on a stage."""

    forward: bool
    loop: int
    micro_batch: int


def stage_passes(stages: int, loops: int, micro_batches: int, stage: int) -> list[Pass]:
    """Everything one stage runs in a step, in order. A single stage takes every micro-batch whole."""
    if stages == 1:
        order = [*range(1, loops + 1), *range(-loops, 0)]
        return [Pass(loop > 0, abs(loop), number) for number in range(micro_batches) for loop in order]
    forward = list(_order(stages, loops, micro_batches))
    backward = [Pass(False, loops + 1 - unit.loop, unit.micro_batch) for unit in forward]
    total = len(forward)
    ahead = stages - stage - 1
    if loops > 1:
        ahead = 2 * ahead + (loops - 1) * stages
    ahead = min(ahead, total)
    passes = forward[:ahead]
    for index in range(total - ahead):
        passes += [forward[ahead + index], backward[index]]
    return passes + backward[total - ahead :]


def _order(stages: int, loops: int, micro_batches: int) -> Iterator[Pass]:
    """Forward passes in order: by groups of P micro-batches, loop by loop."""
    group = stages if loops > 1 else micro_batches
    for first in range(0, micro_batches, group):
        for loop in range(1, loops + 1):
            for micro_batch in range(first, min(first + group, micro_batches)):
                yield Pass(True, loop, micro_batch)


def live_pairs(stages: int, loops: int, micro_batches: int, stage: int) -> int:
    """Most (loop, micro-batch) pairs between forward and backward on a stage.

    min(M R, 2 (P - i - 1) + (R - 1) P + 1) for R >= 2, min(M, P - i) for R = 1, on stage i = 0..P-1. One stage runs
    each micro-batch forward and backward before the next: R.
    """
    if stages == 1:
        return loops
    if loops == 1:
        return min(micro_batches, stages - stage)
    return min(micro_batches * loops, 2 * (stages - stage - 1) + (loops - 1) * stages + 1)


def unit_bubble(stages: int, loops: int, micro_batches: int) -> float:
    """Idle / useful time when every unit costs the same: (P - 1) / (R M)."""
    return (stages - 1) / (loops * micro_batches)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitCosts:
    """Seconds of one pass of a stage, by loop (index 0 is loop 1)."""

    forward: tuple[float, ...]
    backward: tuple[float, ...]


def step_seconds(costs: list[UnitCosts], micro_batches: int) -> float:
    """Time until every stage has finished, if messages took none: each pass waits for its neighbour and its stage.

    Forward of loop r on stage i needs stage i-1's (stage 0: loop r-1 on the last stage); backward mirrors that.
    """
    stages, loops = len(costs), len(costs[0].forward)
    queues = [stage_passes(stages, loops, micro_batches, stage) for stage in range(stages)]
    done: dict[tuple[int, Pass], float] = {}
    clock, position = [0.0] * stages, [0] * stages
    remaining = sum(map(len, queues))
    while remaining:
        before = remaining
        for stage, queue in enumerate(queues):
            while position[stage] < len(queue):
                unit = queue[position[stage]]
                needs = _needs(unit, stage, stages, loops)
                if needs is not None and needs not in done:
                    break
                cost = costs[stage].forward if unit.forward else costs[stage].backward
                start = max(clock[stage], done[needs] if needs is not None else 0.0)
                clock[stage] = done[stage, unit] = start + cost[unit.loop - 1]
                position[stage] += 1
                remaining -= 1
        assert remaining < before, "the schedule waits for itself"
    return max(clock)


def extrapolated_step_seconds(costs: list[UnitCosts], micro_batches: int) -> float:
    """:func:`step_seconds`, played for a few groups of micro-batches only: further ones add the same time each."""
    stages = len(costs)
    shorter, longer = 5 * stages, 6 * stages
    if micro_batches <= longer:
        return step_seconds(costs, micro_batches)
    if stages == 1:
        return micro_batches * step_seconds(costs, 1)
    first, second = step_seconds(costs, shorter), step_seconds(costs, longer)
    return second + (micro_batches - longer) / stages * (second - first)


def _needs(unit: Pass, stage: int, stages: int, loops: int) -> tuple[int, Pass] | None:
    """(stage, pass) whose result a pass waits for; its own forward pass always came before on its stage."""
    step = -1 if unit.forward else 1
    if 0 <= stage + step < stages:
        return stage + step, unit
    loop = unit.loop + step
    if not 1 <= loop <= loops:
        return None
    return (stage + step) % stages, Pass(unit.forward, loop, unit.micro_batch)
