"""Lenses on next-token distributions, and shares."""

import math

import numpy as np
import pytest
import torch

from loopcoder_train.lenses.loop_loss import loop_loss
from loopcoder_train.lenses.output_entropy import output_entropy
from loopcoder_train.lenses.output_kl import output_kl
from loopcoder_train.lenses.shares import change_shares, peak_shares
from loopcoder_train.lenses.true_token_rank import true_token_rank

V = 11


def log_p(seed, tokens=6):
    logits = 3 * torch.randn(tokens, V, generator=torch.Generator().manual_seed(seed)).double()
    return torch.log_softmax(logits, dim=-1)


def test_all_equal_numpy():
    now, before = log_p(0), log_p(1)
    labels = torch.tensor([0, 10, 3, 3, 7, 1])
    p, q = now.exp().numpy(), before.exp().numpy()
    np.testing.assert_allclose(output_kl(now, before), (p * np.log(p / q)).sum(-1), rtol=1e-9)
    np.testing.assert_allclose(output_entropy(now), -(p * np.log(p)).sum(-1), rtol=1e-9)
    np.testing.assert_allclose(loop_loss(now, labels), [-np.log(p[i, y]) for i, y in enumerate(labels)], rtol=1e-9)
    ranks = [int(np.flatnonzero(np.argsort(-p[i]) == int(y))[0]) + 1 for i, y in enumerate(labels)]
    assert true_token_rank(now, labels).tolist() == ranks


def test_a_uniform_distribution():
    even = torch.full((2, V), -math.log(V))
    labels = torch.tensor([4, 0])
    assert output_entropy(even).tolist() == pytest.approx([math.log(V)] * 2)
    assert loop_loss(even, labels).tolist() == pytest.approx([math.log(V)] * 2)
    assert true_token_rank(even, labels).tolist() == [1, 1]  # nobody is better
    assert output_kl(even, even).tolist() == [0.0, 0.0]


def test_a_distribution_that_underflows_costs_nothing_and_is_no_nan():
    sure = torch.log_softmax(torch.tensor([[400.0, 0.0, -400.0]]), dim=-1)
    assert output_entropy(sure).tolist() == [0.0]
    assert output_kl(sure, sure.flip(-1)).tolist() == [800.0]


def test_shares_sum_to_one_and_peaks_count_tokens():
    changes = torch.tensor([[1.0, 0.0, 3.0], [2.0, 0.0, 1.0], [0.0, 5.0, 3.0]])
    numerators, denominator = change_shares(changes)
    assert (numerators / denominator).tolist() == pytest.approx([4 / 15, 3 / 15, 8 / 15])
    assert peak_shares(changes).mean(dim=1).tolist() == pytest.approx(
        [1 / 3, 1 / 3, 1 / 3]
    )  # the earlier of equal ones
    assert peak_shares(changes).sum(dim=0).tolist() == [1.0, 1.0, 1.0]
