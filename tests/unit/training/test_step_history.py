"""When a step is a spike, and what the ledger counts."""

import json
import math
import random

import pytest

from loopcoder_train.config import GuardsConfig, OnBadStep, UserError
from loopcoder_train.training.step_history import BadStep, Cause, StepHistory, judge, robust_sigmas

CONFIG = GuardsConfig(history_steps=40, spike_warmup_steps=20, spike_sigmas=8.0)


def history_of(steps: int, loss=2.0, norm=0.5, length=40, seed=0) -> StepHistory:
    generator = random.Random(seed)
    history = StepHistory(length)
    for _ in range(steps):
        history.keep(generator.gauss(loss, 0.02), norm * math.exp(generator.gauss(0, 0.1)))
    return history


def bad(batch: int, **options) -> BadStep:
    return BadStep(**{"batch": batch, "step": batch, "cause": Cause.spike, "loss": 9.0, "grad_norm": 1.0, **options})


@pytest.mark.parametrize(
    ("loss", "norm", "cause", "said"),
    [
        (math.nan, 0.5, Cause.nonfinite, "loss=nan, gradient norm=0.5"),
        (2.0, math.inf, Cause.nonfinite, "gradient norm=inf"),
        (2.3, 0.5, Cause.spike, "loss=2.3 lies"),
        (2.0, 2.0, Cause.spike, "gradient norm=2 lies"),
    ],
)
def test_what_is_bad(loss, norm, cause, said):
    found, reason = judge(history_of(40), CONFIG, loss, norm)
    assert found is cause and said in reason, reason


@pytest.mark.parametrize(("loss", "norm"), [(2.05, 0.5), (1.0, 0.5), (2.0, 0.9), (2.0, 0.0)])
def test_ripples_and_anything_below_the_median_are_kept(loss, norm):
    assert judge(history_of(40), CONFIG, loss, norm) is None


def test_nothing_is_a_spike_before_the_history_is_long_enough():
    assert judge(history_of(19), CONFIG, 100.0, 1e6) is None
    assert judge(history_of(20), CONFIG, 100.0, 0.5)[0] is Cause.spike
    assert judge(StepHistory(40), CONFIG, math.nan, 0.5)[0] is Cause.nonfinite


def test_the_history_forgets_what_is_older_than_its_length():
    history = history_of(40, loss=9.0)
    for _ in range(40):
        history.keep(2.0, 0.5)
    assert len(history.losses) == 40 and judge(history, CONFIG, 3.0, 0.5)[0] is Cause.spike


def test_a_spike_is_measured_by_medians_which_earlier_spikes_do_not_move():
    values = [1.0, 1.1, 0.9, 1.2, 0.8, 50.0]
    # median 1.05, distances 0.05 0.05 0.15 0.15 0.25 48.95: their median is 0.15
    assert robust_sigmas(2.0, values, 0.0) == pytest.approx((2.0 - 1.05) / (1.4826 * 0.15))


def test_a_quiet_stretch_makes_no_spike_of_a_ripple():
    history = StepHistory(40)
    for _ in range(40):
        history.keep(2.0, 0.5)
    assert judge(history, CONFIG, 2.0 * (1 + 7e-3), 0.55) is None
    assert judge(history, CONFIG, 2.0 * (1 + 9e-3), 0.5)[0] is Cause.spike


def test_the_caps_count_batches_of_the_ledger():
    history = StepHistory(40)
    history.ledger = [bad(3), bad(7), bad(8), bad(9, back_to=4)]
    assert [history.bad_in_a_row(batch) for batch in (3, 4, 7, 8, 9, 10, 11)] == [0, 1, 0, 1, 2, 3, 0]
    assert [history.bad_since(batch) for batch in (3, 4, 8, 10)] == [4, 3, 2, 0]
    assert history.rewinds == 1


def test_a_history_comes_back_from_json_exactly():
    history = history_of(50)
    history.ledger = [bad(3), bad(7, loss=None, cause=Cause.nonfinite, back_to=2)]
    again = StepHistory.from_json(json.loads(json.dumps(history.to_json())), 40)
    assert again == history and len(again.losses) == 40
    shorter = StepHistory.from_json(history.to_json(), 10)
    assert list(shorter.losses) == list(history.losses)[-10:]


@pytest.mark.parametrize(
    "change", [{"losses": None}, {"ledger": [{"batch": 1}]}, {"ledger": [bad(1).to_json() | {"cause": "other"}]}]
)
def test_what_is_no_history_is_a_users_error(change):
    with pytest.raises(UserError, match="history is not one"):
        StepHistory.from_json(StepHistory(4).to_json() | change, 4)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"nonfinite": OnBadStep.ignore}, "guards.nonfinite=ignore: would put NaN"),
        ({"spike_sigmas": 0.0}, "guards.spike_sigmas=0.0"),
        ({"history_steps": 10}, "guards.spike_warmup_steps=64: must not exceed guards.history_steps=10"),
        ({"max_rewinds": -1}, "guards.max_rewinds=-1"),
    ],
)
def test_options_that_cannot_be(options, said):
    with pytest.raises(UserError) as refusal:
        GuardsConfig(**options)
    assert said in str(refusal.value)
