"""Who won, how sure, at what cost; and every reason to say nothing."""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from loopcoder_train.sweep.matching import Check, Match, Status
from loopcoder_train.sweep.verdict import WELL_BELOW, Spread, judge
from tests.unit.sweep.results_of import result

MATCHED = [Match("model.num_loops", (Check("options", Status.same, "all"),))]


def test_the_lowest_loss_with_a_paired_interval_over_documents():
    rng = np.random.default_rng(0)
    hard = rng.normal(4.0, 0.5, 50)  # documents differ far more than arms
    one, two = hard + 0.05 + rng.normal(0, 0.01, 50), hard
    found = judge([result("R = 1", one.tolist()), result("R = 2", two.tolist())], MATCHED, [])
    assert found.best == "R = 2" and found.spread is Spread.documents and found.num_spread == 50
    first, second = found.values
    differences = one - two
    low, high = stats.t.interval(0.95, 49, differences.mean(), stats.sem(differences))
    assert (first.difference.low, first.difference.high) == (pytest.approx(low), pytest.approx(high))
    assert second.difference is None and not first.tied
    assert f"{differences.mean():.4f} [{low:.4f}, {high:.4f}] below R = 1" in found.sentence
    assert "50 held-out documents of one seed" in found.sentence and "Another seed may" in found.sentence
    assert "2.00 times the training FLOPs of R = 1" in found.sentence
    assert first.loss.half_width > 5 * first.difference.half_width, "pairing is what tells them apart"


def test_intervals_of_all_pairs_hold_at_once():
    """Four values are six pairs: each interval is at 1 - 0.05 / 6."""
    rng = np.random.default_rng(2)
    hard = rng.normal(4.0, 0.5, 40)
    losses = {r: hard + 0.01 * r + rng.normal(0, 0.02, 40) for r in (1, 2, 3, 4)}
    found = judge([result(f"R = {r}", of_r.tolist()) for r, of_r in losses.items()], MATCHED, [])
    assert found.best == "R = 1" and "jointly 95%" in found.sentence
    differences = losses[3] - losses[1]
    low, high = stats.t.interval(1 - 0.05 / 6, 39, differences.mean(), stats.sem(differences))
    assert (found.values[2].difference.low, found.values[2].difference.high) == pytest.approx((low, high))


def test_how_often_the_joint_intervals_hold():
    """Equal arms, 800 times: some pair is told apart in at most 5% of the sweeps (7% with the noise of counting)."""
    rng, wrong = np.random.default_rng(3), 0
    for _ in range(800):
        arms = [result(f"R = {r}", rng.normal(4.0, 0.1, 10).tolist()) for r in (1, 2, 3, 4)]
        values = judge(arms, MATCHED, []).values
        wrong += any(value.difference is not None and not value.tied for value in values)
    assert wrong <= 0.07 * 800


def test_a_model_that_diverged_is_not_the_best():
    arms = [result("R = 1", [float("nan")] * 3), result("R = 2", [4.0, 4.1, 4.2])]
    found = judge(arms, MATCHED, [])
    assert found.best is None and found.values[1].difference is None and "R = 1 at nan" in found.sentence


def test_equal_costs_are_called_equal():
    arms = [result("lr = 1", [4.0, 4.1, 4.2]), result("lr = 1e", [4.3, 4.4, 4.6], training_flops=10**12)]
    assert ", at the same training FLOPs." in judge(arms, MATCHED, []).sentence


def test_arms_that_cannot_be_told_apart_are_named():
    rng = np.random.default_rng(1)
    hard = rng.normal(4.0, 0.5, 20)
    arms = [result("R = 1", (hard + rng.normal(0.001, 0.1, 20)).tolist()), result("R = 2", hard.tolist())]
    found = judge(arms, MATCHED, [])
    assert found.values[0 if found.best == "R = 2" else 1].tied and "cannot be told apart" in found.sentence


def test_several_seeds_give_an_interval_over_seeds():
    losses = {1: [4.30, 4.40, 4.50], 2: [4.20, 4.31, 4.38]}
    arms = [result(f"R = {r}", [loss, loss], seed=seed) for r, of_r in losses.items() for seed, loss in enumerate(of_r)]
    found = judge(arms, MATCHED, [])
    assert found.spread is Spread.seeds and found.num_spread == 3 and found.best == "R = 2"
    differences = np.subtract(losses[1], losses[2])
    low, high = stats.t.interval(0.95, 2, differences.mean(), stats.sem(differences))
    assert (found.values[0].difference.low, found.values[0].difference.high) == pytest.approx((low, high))
    assert "over 3 seeds" in found.sentence and "Another seed" not in found.sentence
    assert found.values[0].loss.mean == pytest.approx(4.4)


def test_only_seeds_that_every_value_has_count():
    arms = [
        result("R = 1", [4.0, 4.1], seed=0),
        result("R = 1", [1.0, 1.1], seed=1),
        result("R = 2", [4.2, 4.3], seed=0),
    ]
    found = judge(arms, MATCHED, [])
    assert found.spread is Spread.documents and found.values[0].loss.mean == pytest.approx(4.05)
    assert "no seed has a result for every value" in judge(arms[1:], MATCHED, []).sentence


def test_arms_above_the_baseline_count_for_nothing():
    just_below = 5.0 - WELL_BELOW + 0.01
    found = judge([result("R = 1", [4.0, 4.1]), result("R = 2", [just_below] * 2)], MATCHED, [])
    assert found.best is None and "R = 2 at 4.9100" in found.sentence and "bigram baseline of 5.0000" in found.sentence
    assert [value.counts for value in found.values] == [True, False]


def test_every_seed_must_be_below_its_own_baseline():
    """Means would hide that a seed of each value has learnt nothing; baselines of seeds differ, too."""
    losses = {1: [4.5, 4.6, 5.2], 2: [4.4, 4.5, 4.4]}
    arms = [result(f"R = {r}", [loss, loss], seed=seed) for r, of_r in losses.items() for seed, loss in enumerate(of_r)]
    found = judge(arms, MATCHED, [])
    assert found.best is None and [value.counts for value in found.values] == [False, True]
    assert (
        "R = 1, seed 2, at 5.2000 nats per token, not at least 0.1 below the bigram baseline of 5.0000"
        in found.sentence
    )
    arms[2] = result("R = 1", [5.2, 5.2], seed=2, bigram=5.31)
    assert judge(arms, MATCHED, []).best == "R = 2"


def test_unmatched_runs_get_no_verdict():
    unmatched = [Match("x", (Check("corpus", Status.different, "", ("b against a: manifest_hash is 1, not 2",)),))]
    found = judge([result("R = 1", [4.0, 4.1]), result("R = 2", [3.0, 3.1])], [*MATCHED, *unmatched], [])
    assert found.best is None
    assert found.sentence == "No verdict: the runs are not matched (corpus: b against a: manifest_hash is 1, not 2)."


def test_unfinished_arms_and_single_values_get_no_verdict():
    arms = [result("R = 1", [4.0, 4.1]), result("R = 2", [3.0, 3.1])]
    assert judge(arms, MATCHED, ["R = 3"]).sentence == "No verdict: R = 3 did not finish."
    assert judge(arms[:1], MATCHED, []).sentence == "No verdict: there is nothing to compare with."


def test_losses_of_other_documents_are_not_compared():
    other = result("R = 2", [3.0, 3.1], tokens=9)
    for seeds in ([0], [0, 1]):
        arms = [result("R = 1", [4.0, 4.1], seed=seed) for seed in seeds]
        found = judge([*arms, *(dataclasses.replace(other, seed=seed) for seed in seeds)], MATCHED, [])
        assert found.best is None and found.values == []
        assert "changes the held-out documents" in found.sentence
