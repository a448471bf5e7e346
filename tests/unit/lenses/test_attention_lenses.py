"""Attention weights and the lenses on them: uniform, one-hot and alike heads; all against numpy, head by head."""

import math

import numpy as np
import pytest
import torch

from loopcoder_train.lenses.attention_entropy import attention_entropy
from loopcoder_train.lenses.attention_kl import attention_kl
from loopcoder_train.lenses.attention_weights import GLOBAL, LOCAL, MIXTURE, Visit, spread_queries
from loopcoder_train.lenses.head_diversity import head_cosine, head_rank

H, G, D, N, WINDOW = 6, 2, 4, 9, 3


def random_visit(seed=0, gate=None):
    g = torch.Generator().manual_seed(seed)
    query, key, shared = (torch.randn(N, heads, D, generator=g).double() for heads in (H, G, G))
    return Visit(query, key, shared, torch.rand(N, H, generator=g).double() if gate is None else gate)


def softmax(query, keys):
    scores = keys @ query / math.sqrt(D)
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


def brute_force(visit, i, head):
    """Mixture, global and local weights [i + 1] of one query and head."""
    group = head // (H // G)
    query = visit.query[i, head].numpy()
    to_global = softmax(query, visit.shared_key[: i + 1, group].numpy())
    first = max(0, i - WINDOW)
    to_local = np.zeros(i + 1)
    to_local[first:] = softmax(query, visit.key[first : i + 1, group].numpy())
    gate = float(visit.gate[i, head])
    return {MIXTURE: gate * to_global + (1 - gate) * to_local, GLOBAL: to_global, LOCAL: to_local}


@pytest.mark.parametrize("queries", [[0], [8], [0, 1, 2, 3, 4, 5, 6, 7, 8], [2, 5]])
def test_weights_equal_brute_force(queries):
    visit = random_visit()
    found = visit.log_weights(torch.tensor(queries), WINDOW)
    assert set(found) == {MIXTURE, GLOBAL, LOCAL}
    for kind, log_weights in found.items():
        assert log_weights.shape == (H, len(queries), queries[-1] + 1)
        for place, i in enumerate(queries):
            for head in range(H):
                expected = np.zeros(queries[-1] + 1)
                expected[: i + 1] = brute_force(visit, i, head)[kind]
                np.testing.assert_allclose(log_weights[head, place].exp().numpy(), expected, atol=1e-12)


def test_full_attention_has_one_kind():
    visit = random_visit()
    full = Visit(visit.query, visit.shared_key).log_weights(torch.arange(N), WINDOW)
    assert set(full) == {MIXTURE}
    assert torch.equal(full[MIXTURE], visit.log_weights(torch.arange(N), WINDOW)[GLOBAL])


def test_a_zero_query_looks_at_everything_alike():
    visit = Visit(torch.zeros(N, H, D), torch.randn(N, G, D), torch.randn(N, G, D), torch.full((N, H), 0.5))
    found = visit.log_weights(torch.arange(N), WINDOW)
    entropy = {kind: attention_entropy(weights) for kind, weights in found.items()}
    visible = torch.arange(1, N + 1).double()
    torch.testing.assert_close(entropy[GLOBAL].double(), visible.log(), atol=1e-6, rtol=0)
    torch.testing.assert_close(entropy[LOCAL].double(), visible.clamp(max=WINDOW + 1).log(), atol=1e-6, rtol=0)
    assert (entropy[MIXTURE][WINDOW + 1 :] < entropy[GLOBAL][WINDOW + 1 :]).all()
    assert (entropy[MIXTURE][WINDOW + 1 :] > entropy[LOCAL][WINDOW + 1 :]).all()


def test_entropy_of_one_key_is_zero_and_heads_are_averaged():
    one_hot = torch.tensor([[0.0, float("-inf")]])
    even = torch.full((1, 2), math.log(0.5))
    entropy = attention_entropy(torch.stack([one_hot, even]))
    assert entropy.tolist() == pytest.approx([math.log(2) / 2])


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_saturated_gate_is_one_branch_and_every_kl_is_finite(value):
    saturated = random_visit(gate=torch.full((N, H), value).double())
    other = random_visit(seed=1, gate=torch.full((N, H), 1.0 - value).double())
    queries = torch.arange(N)
    found, before = saturated.log_weights(queries, WINDOW), other.log_weights(queries, WINDOW)
    branch = found[GLOBAL if value else LOCAL]
    torch.testing.assert_close(found[MIXTURE].exp(), branch.exp(), atol=2e-6, rtol=0)
    for kind in (MIXTURE, GLOBAL, LOCAL):
        assert attention_kl(found[kind], before[kind]).isfinite().all()


def test_kl_equals_numpy_and_is_zero_for_the_same_loop():
    now, before = (random_visit(seed).log_weights(torch.arange(N), WINDOW)[MIXTURE] for seed in (0, 1))
    assert not attention_kl(now, now).any()
    p, q = now.exp().numpy(), before.exp().numpy()
    expected = [
        np.mean([(p[h, i, : i + 1] * np.log(p[h, i, : i + 1] / q[h, i, : i + 1])).sum() for h in range(H)])
        for i in range(N)
    ]
    np.testing.assert_allclose(attention_kl(now, before).numpy(), expected, rtol=1e-9, atol=1e-12)


def test_heads_that_look_alike_and_heads_that_share_nothing():
    alike = torch.softmax(torch.randn(1, 5, 12), dim=-1).expand(H, -1, -1)
    torch.testing.assert_close(head_rank(alike), torch.ones(5).double(), atol=1e-4, rtol=0)
    torch.testing.assert_close(head_cosine(alike), torch.ones(5), atol=1e-5, rtol=0)
    apart = torch.eye(12)[:H, None].expand(-1, 5, -1)
    torch.testing.assert_close(head_rank(apart), torch.full((5,), float(H)).double())
    torch.testing.assert_close(head_cosine(apart), torch.zeros(5), atol=1e-6, rtol=0)


def test_head_diversity_equals_numpy():
    weights = random_visit().log_weights(torch.arange(N), WINDOW)[MIXTURE].exp()
    for i in range(N):
        matrix = weights[:, i].numpy()
        s = np.linalg.svd(matrix, compute_uv=False)
        s = s[s > 0] / s.sum()
        assert float(head_rank(weights)[i]) == pytest.approx(float(np.exp(-(s * np.log(s)).sum())), rel=1e-6)
        cosines = [
            matrix[a] @ matrix[b] / np.linalg.norm(matrix[a]) / np.linalg.norm(matrix[b])
            for a in range(H)
            for b in range(H)
            if a != b
        ]
        assert float(head_cosine(weights)[i]) == pytest.approx(float(np.mean(cosines)), rel=1e-9)


@pytest.mark.parametrize(("tokens", "most"), [(5, None), (5, 5), (5, 9), (100, 7), (65, 64), (1000, 1)])
def test_queries_are_spread_over_the_document(tokens, most):
    queries = spread_queries(tokens, most, torch.device("cpu")).tolist()
    assert len(queries) == min(tokens, most or tokens) == len(set(queries))
    assert queries == sorted(queries) and queries[0] >= 0 and queries[-1] < tokens
    part = tokens / len(queries)
    assert all(query <= (j + 0.5) * part < query + 1 for j, query in enumerate(queries))  # the middles of equal parts
