"""Lenses on states: closed cases, and numpy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loopcoder_train.lenses.angular_change import angular_change
from loopcoder_train.lenses.effective_rank import effective_rank
from loopcoder_train.lenses.fixed_point_gap import fixed_point_gap
from loopcoder_train.lenses.gate_mean import gate_mean
from loopcoder_train.lenses.offset_cost import offset_cost
from loopcoder_train.lenses.precision import wide
from loopcoder_train.lenses.step_size import step_size


def states(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def test_identical_states_move_by_nothing():
    h = states(7, 12)
    assert not step_size(h, h).any() and not fixed_point_gap(h, h).any()
    assert not angular_change(h, h, states(7, 12, seed=1)).any()  # an update of zero has no direction
    assert not offset_cost(h[:1].expand(7, -1)).any()


def test_known_steps():
    h = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    assert step_size(h, torch.zeros(2, 2)).tolist() == [5.0, 0.0]
    assert fixed_point_gap(torch.zeros(2, 2), h).tolist() == [5.0, 0.0]


def test_updates_that_are_orthogonal_parallel_and_opposite():
    first = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    second = torch.tensor([[0.0, 2.0], [2.0, 0.0], [-0.5, 0.0]])
    zero = torch.zeros(3, 2)
    assert angular_change(first + second, first, zero).tolist() == [0.0, 1.0, -1.0]


def test_an_update_that_is_rounding_has_no_direction():
    before = states(4, 50, dtype=torch.float32)
    rounded = before * (1 + 1e-6)
    assert not angular_change(rounded, before, states(4, 50, seed=1)).any()
    assert not angular_change(states(4, 50, seed=1), before, rounded).any()
    assert angular_change(before * 1.001, before, torch.zeros(4, 50)).tolist() == pytest.approx([1.0] * 4, abs=1e-3)


def test_the_offset_is_between_neighbours_and_the_first_token_has_none():
    h = torch.tensor([[0.0, 0.0], [3.0, 4.0], [3.0, 16.0]])
    assert offset_cost(h).tolist() == [5.0, 12.0]


@pytest.mark.parametrize(("rows", "columns"), [(6, 40), (40, 6), (9, 9)])
def test_effective_rank_of_closed_cases(rows, columns):
    left, right = states(rows, 1), states(1, columns, seed=1)
    assert float(effective_rank(left @ right)) == pytest.approx(1.0, abs=1e-6)
    basis = torch.linalg.qr(states(max(rows, columns), min(rows, columns))).Q
    equal = basis if rows >= columns else basis.T
    assert float(effective_rank(equal)) == pytest.approx(min(rows, columns), rel=1e-12)
    two = torch.zeros(rows, columns, dtype=torch.float64)
    two[0, 0], two[1, 1] = 3.0, 1.0
    shares = np.array([0.75, 0.25])
    assert float(effective_rank(two)) == pytest.approx(float(np.exp(-(shares * np.log(shares)).sum())), rel=1e-12)


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 12), d=st.integers(1, 12), seed=st.integers(0, 999), scale=st.floats(1e-3, 1e3))
def test_effective_rank_equals_numpys_singular_values(n, d, seed, scale):
    matrix = states(2, n, d, seed=seed) * scale
    for got, one in zip(effective_rank(matrix), matrix.numpy(), strict=True):
        s = np.linalg.svd(one, compute_uv=False)
        s = s / s.sum()
        assert float(got) == pytest.approx(float(np.exp(-(s * np.log(s)).sum())), rel=1e-6)


def test_bf16_states_are_compared_in_fp32():
    h, before = states(5, 300, dtype=torch.bfloat16), states(5, 300, seed=1, dtype=torch.bfloat16)
    expected = np.linalg.norm(h.double().numpy() - before.double().numpy(), axis=-1)
    assert step_size(h, before).dtype is torch.float32
    np.testing.assert_allclose(step_size(h, before).numpy(), expected, rtol=1e-6)
    assert wide(h.double()).dtype is torch.float64


def test_gate_mean_is_over_heads():
    assert gate_mean(torch.tensor([[0.0, 1.0, 0.5], [1.0, 1.0, 1.0]])).tolist() == [0.5, 1.0]
