"""The schedule is Megatron's; its formulas are what playing it gives."""

import random
from importlib import import_module

import pytest

from loopcoder_train.planning.schedule import (
    UnitCosts,
    extrapolated_step_seconds,
    live_pairs,
    stage_passes,
    step_seconds,
    unit_bubble,
)

SIZES = [(p, r, m) for p in (2, 3, 4, 8) for r in (1, 2, 3, 4) for m in (p, 2 * p, 5 * p)]


@pytest.mark.parametrize(("stages", "loops", "micro_batches"), SIZES)
def test_order_is_megatrons(stages, loops, micro_batches):
    import_module("loopcoder_train.engines.megatron")  # the stand-in for CUDA comes before Megatron
    from megatron.core.pipeline_parallel.schedules import get_schedule_table

    if loops > 1:
        table = [(batch, loop + 1) for batch, loop in get_schedule_table(micro_batches, loops, stages)]
    else:
        table = [(batch, 1) for batch in range(micro_batches)]
    for stage in range(stages):
        passes = stage_passes(stages, loops, micro_batches, stage)
        assert [(p.micro_batch, p.loop) for p in passes if p.forward] == table
        assert [(p.micro_batch, loops + 1 - p.loop) for p in passes if not p.forward] == table


@pytest.mark.parametrize(("stages", "loops", "micro_batches"), SIZES)
def test_live_pairs_are_those_of_the_schedule(stages, loops, micro_batches):
    for stage in range(stages):
        alive = most = 0
        for one in stage_passes(stages, loops, micro_batches, stage):
            alive += 1 if one.forward else -1
            most = max(most, alive)
        assert most == live_pairs(stages, loops, micro_batches, stage)
        assert alive == 0


def test_live_pairs_by_hand():
    assert [live_pairs(4, 2, 16, stage) for stage in range(4)] == [11, 9, 7, 5]
    assert [live_pairs(4, 1, 16, stage) for stage in range(4)] == [4, 3, 2, 1]
    assert live_pairs(1, 3, 16, 0) == 3


def test_one_stage_takes_micro_batches_whole():
    passes = stage_passes(1, 2, 2, 0)
    assert [(p.forward, p.loop, p.micro_batch) for p in passes[:4]] == [
        (True, 1, 0), (True, 2, 0), (False, 2, 0), (False, 1, 0)
    ]  # fmt: skip
    assert step_seconds([UnitCosts(forward=(1.0, 2.0), backward=(3.0, 4.0))], 5) == 50.0


@pytest.mark.parametrize(("stages", "loops", "micro_batches"), SIZES)
def test_equal_passes_idle_by_the_formula(stages, loops, micro_batches):
    costs = [UnitCosts(forward=(1.0,) * loops, backward=(2.0,) * loops)] * stages
    seconds = step_seconds(costs, micro_batches)
    assert seconds / (3 * loops * micro_batches) - 1 == pytest.approx(unit_bubble(stages, loops, micro_batches))


def test_bubble_by_hand():
    assert unit_bubble(4, 2, 16) == pytest.approx(0.09375)
    assert unit_bubble(1, 4, 7) == 0


def test_a_slow_stage_sets_the_pace():
    """Three stages, the last twice as slow: its work, and the way there and back once."""
    costs = [UnitCosts(forward=(1.0,), backward=(2.0,))] * 2 + [UnitCosts(forward=(2.0,), backward=(4.0,))]
    assert step_seconds(costs, 10) == 10 * 6.0 + 2 * (1.0 + 2.0)


@pytest.mark.parametrize(("stages", "loops"), [(1, 3), (2, 1), (2, 2), (4, 3), (8, 2)])
def test_a_long_step_is_extrapolated(stages, loops):
    draw = random.Random(stages).uniform
    costs = [
        UnitCosts(
            forward=tuple(draw(0.8, 1.2) for _ in range(loops)), backward=tuple(draw(1.6, 2.4) for _ in range(loops))
        )
        for _ in range(stages)
    ]
    assert extrapolated_step_seconds(costs, 16 * stages) == pytest.approx(step_seconds(costs, 16 * stages), rel=5e-3)
