"""The Megatron engine = the plain model, for every layout; and every plausible mistake is felt.

One torchrun per number of processes works through all cases (megatron_worker.py); each is its own test here.
Gradient error = max|difference| / max|reference| per tensor, the worst of all tensors and ranks.
"""

import functools

import pytest

from tests.distributed.megatron_cases import AFTER_A_STEP_TOLERANCE, Case, ci_cases, exhaustive_cases
from tests.distributed.torchrun import results_of

TOLERANCE = 1e-5
# The second moment squares the gradient, and the weights of steps 2 and 3 already differ by rounding; a clip or a beta
# that is off shows from 1e-2.
MOMENT_TOLERANCE = 1e-4
BF16_LOSS_TOLERANCE = 5e-3  # nats, of losses around 5: bf16 keeps 8 bits
_TIMEOUT_SECONDS = {"ci": 840, "exhaustive": 3600}  # the torchrun's; about 60 seconds on two free cores

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(900)]


@functools.cache
def results(which: str, world_size: int) -> tuple[dict[str, dict], str]:
    """Errors of every case by its id, and the end of torchrun's output."""
    return results_of("megatron_worker", world_size, "--set", which, timeout_seconds=_TIMEOUT_SECONDS[which])


def errors_of(case: Case, which: str) -> dict[str, float]:
    """The case's errors; a test failure with torchrun's words when the run ended before it."""
    found, output = results(which, case.world_size)
    if case.id not in found:
        pytest.fail(f"{case.id} has no result: {output}")
    return found[case.id]["errors"]


def cases_of(*kinds: str) -> list:
    return [pytest.param(case, id=case.id) for case in ci_cases() if case.kind in kinds]


@pytest.mark.parametrize("case", cases_of("gradients"))
def test_loss_and_every_gradient_equal_the_plain_model(case):
    errors = errors_of(case, "ci")
    assert errors["loss"] <= TOLERANCE
    assert errors["gradient"] <= TOLERANCE


@pytest.mark.exhaustive
@pytest.mark.timeout(3700)
@pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in exhaustive_cases()])
def test_the_whole_matrix_equals_the_plain_model(case):
    errors = errors_of(case, "exhaustive")
    assert errors["loss"] <= TOLERANCE
    assert errors["gradient"] <= TOLERANCE


@pytest.mark.parametrize("case", cases_of("training"))
def test_steps_evaluation_and_telemetry_equal_the_plain_engine(case):
    errors = errors_of(case, "ci")
    bounds = {"moments": MOMENT_TOLERANCE, "after_a_step": AFTER_A_STEP_TOLERANCE, "refused": 0.0, "replicas": 0,
              "weight_fingerprints": 0}  # fmt: skip
    assert {name: error for name, error in errors.items() if not error <= bounds.get(name, TOLERANCE)} == {}


@pytest.mark.parametrize("case", cases_of("bf16"))
def test_bf16_strays_no_further_from_fp32_than_the_plain_engine_does(case):
    errors = errors_of(case, "ci")
    assert errors["masters"] == 0, "fp32 masters were rounded"
    assert errors["loss"] <= BF16_LOSS_TOLERANCE
    assert errors["gradient"] <= 1.5 * errors["plain_gradient"]


@pytest.mark.parametrize("case", cases_of("state"))
def test_saved_state_goes_on_in_the_same_and_in_another_layout(case):
    errors = errors_of(case, "ci")
    assert errors["loaded"] == 0
    if case.layout == case.other_layout:
        assert errors["loss"] == errors["tensors"] == 0
    elif case.precision == "fp32":
        assert errors["loss"] <= TOLERANCE
    else:  # the layouts sum in another order and round to bf16 after it
        assert errors["loss"] <= 1e-2


@pytest.mark.parametrize("case", cases_of("schedule"))
def test_a_pipeline_keeps_and_idles_as_the_formulas_say(case):
    errors = errors_of(case, "ci")
    assert errors["live_pairs"] == 0
    assert errors["idle"] < 1e-12


@pytest.mark.parametrize("case", cases_of("mutation", "state_mutation"))
def test_a_mistake_is_felt(case):
    errors = errors_of(case, "ci")
    assert errors["right"] <= TOLERANCE
    assert errors["wrong"] >= 100 * TOLERANCE


@pytest.mark.parametrize("case", cases_of("memory"))
def test_recomputation_keeps_what_it_says(case):
    kept = errors_of(case, "ci")
    assert kept["layer"] < kept["selective"] < kept["none"]
    # a layer's input in both loops, K1 and V1 (2 heads of 10 each, whole rows), and per pass: E, B(2), h, masks, tables
    hidden, kv, per_pass = 32, 2 * 2 * 10, 4 * 32 + 3 * 48
    assert kept["layer"] <= 2 * hidden + kv + per_pass / 2


@pytest.mark.parametrize("case", cases_of("saved_bytes"))
def test_checkpoints_do_not_grow_with_loops(case):
    assert errors_of(case, "ci") == {"more_loops": 0, "gates": 0}
