"""The DeepSpeed engine = the plain engine, for every ZeRO stage and split of a batch; and mistakes are felt.

One torchrun per number of processes works through all cases (deepspeed_worker.py); each is its own test here. Errors of
tensors = norm of the difference / norm of the reference, the worst tensor.
"""

import functools

import pytest

from tests.distributed.deepspeed_cases import ZeroCase, all_cases
from tests.distributed.torchrun import results_of

TOLERANCE = 1e-6
# fp32 sums in another order, three steps on; a beta, a decay or a clip that is off shows from 1e-4
BOUNDS = {"weights_at_the_end": 1e-5, "moments": 1e-5, "refused": 0.0, "tokens": 0, "fingerprints": 0,
          "weight_fingerprints": 0}  # fmt: skip
GATHERED = 0.1  # of the model with 6 layers and R loops

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]


@functools.cache
def results(world_size: int) -> tuple[dict[str, dict], str]:
    """Errors of every case by its id, and the end of torchrun's output."""
    return results_of("deepspeed_worker", world_size, timeout_seconds=500)


def errors_of(case: ZeroCase) -> dict[str, float]:
    """The case's errors; a test failure with torchrun's words when the run ended before it."""
    found, output = results(case.world_size)
    if case.id not in found:
        pytest.fail(f"{case.id} has no result: {output}")
    return found[case.id]["errors"]


def cases_of(kind: str) -> list:
    right = [case for case in all_cases() if case.kind == kind and not case.mutation]
    return [pytest.param(case, id=case.id) for case in right]


@pytest.mark.parametrize("case", cases_of("parity"))
def test_steps_evaluation_and_telemetry_equal_the_plain_engine(case):
    errors = errors_of(case)
    assert {name: error for name, error in errors.items() if not error <= BOUNDS.get(name, TOLERANCE)} == {}


@pytest.mark.parametrize("case", cases_of("bf16"))
def test_bf16_has_fp32_masters_and_sums_like_the_plain_engine(case):
    errors = errors_of(case)
    assert errors["masters"] == 0, "fp32 masters were rounded"
    assert errors["refused"] == 0
    assert errors["loss"] <= TOLERANCE
    assert errors["gradient"] <= TOLERANCE


@pytest.mark.parametrize("case", cases_of("state"))
def test_saved_state_goes_on_in_the_same_and_in_another_stage(case):
    errors = errors_of(case)
    assert errors["loaded"] == 0
    if case.stage == case.other_stage:
        assert errors["loss"] == errors["tensors"] == 0
    elif case.precision == "fp32":
        assert errors["loss"] <= 1e-5
    else:  # the stages sum in another order and round to bf16 after it
        assert errors["loss"] <= 1e-2


@pytest.mark.parametrize("case", cases_of("journey"))
def test_megatrons_checkpoint_goes_on_under_zero_and_then_plain(case):
    assert errors_of(case)["loss"] <= (1e-6 if case.precision == "fp32" else 5e-3)


@pytest.mark.parametrize("case", cases_of("infinite"))
def test_an_infinite_loss_is_refused_and_leaves_no_trace(case):
    assert errors_of(case) == {"made": 0, "finite": 0, "trace": 0, "next": 0}


@pytest.mark.parametrize("case", cases_of("memory"))
def test_stage_3_gathers_little_at_a_time(case):
    assert errors_of(case)["gathered"] < GATHERED


@pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in all_cases() if case.mutation])
def test_a_mistake_is_felt(case):
    errors = errors_of(case)
    right, wrong = (GATHERED, 0.9) if case.kind == "memory" else (1e-5, 1e-4)
    assert errors["right"] <= right
    assert errors["wrong"] >= wrong
