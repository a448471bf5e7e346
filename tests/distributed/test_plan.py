"""`loopcoder plan`'s memory and traffic against what is counted on real steps of the Megatron engine.

One torchrun per number of processes works through all cases (plan_worker.py); each is its own test here.
"""

import functools

import pytest

from tests.distributed.plan_cases import PlanCase, plan_cases
from tests.distributed.torchrun import results_of

TOLERANCE = 0.1  # of what a rank holds beyond weights, gradients and optimizer state, and of the whole
AT_REST_TOLERANCE = 0.01  # the distributed optimizer pads its buffers
TRAFFIC_TOLERANCE = 0.005  # the same, and a few numbers for the gradient norm
_TIMEOUT_SECONDS = 840

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(900)]


@functools.cache
def results(world_size: int) -> tuple[dict[str, list], str]:
    """What every rank counted and planned, by the case's id, and the end of torchrun's output."""
    return results_of("plan_worker", world_size, timeout_seconds=_TIMEOUT_SECONDS)


def ranks_of(case: PlanCase) -> list[dict]:
    found, output = results(case.world_size)
    if case.id not in found:
        pytest.fail(f"{case.id} has no result: {output}")
    return found[case.id]


CASES = [pytest.param(case, id=case.id) for case in plan_cases()]


@pytest.mark.parametrize("case", CASES)
def test_memory_of_every_rank(case):
    for rank in ranks_of(case):
        counted, planned = rank["counted"], rank["planned"]
        for kind in ("weights", "gradients", "optimizer"):
            assert planned[kind] == pytest.approx(counted[kind], rel=AT_REST_TOLERANCE), kind
        for kind in ("passes", "peak"):
            assert planned[kind] == pytest.approx(counted[kind], rel=TOLERANCE), kind
        if not case.distributed_optimizer:  # its ranges cut parameters anywhere, and AdamW's temporaries with them
            assert planned["update"] == pytest.approx(counted["update"], rel=TOLERANCE)


@pytest.mark.parametrize("case", CASES)
def test_bytes_sent_by_every_rank(case):
    for rank in ranks_of(case):
        if case.world_size == 1:
            assert rank["counted"]["sent"] == rank["planned"]["sent"] == 0
        else:
            assert rank["planned"]["sent"] == pytest.approx(rank["counted"]["sent"], rel=TRAFFIC_TOLERANCE)


def test_every_kind_of_memory_is_at_some_peak():
    """A kind that is never more than nothing would never be held against anything."""
    kinds = [rank["kinds"] for case in plan_cases() for rank in ranks_of(case)]
    assert [kind for kind in kinds[0] if not any(rank[kind] for rank in kinds)] == []
