"""Every kernel honours window and documents, or refuses."""

import gc
import weakref
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loopcoder_train.config import GlobalKernel, KernelConfig, LocalKernel, UserError
from loopcoder_train.model import attention
from loopcoder_train.model.documents import Documents

CPU = torch.device("cpu")


def masked_attention(query, key, value, seen):
    """Softmax attention with a boolean mask [B, S, S], in fp64, without torch's kernels."""
    repeats = query.shape[2] // key.shape[2]
    q, k, v = query.double(), key.double().repeat_interleave(repeats, 2), value.double().repeat_interleave(repeats, 2)
    scores = torch.einsum("bihd,bjhd->bhij", q, k) / q.shape[-1] ** 0.5
    probabilities = scores.masked_fill(~seen[:, None], float("-inf")).softmax(-1)
    return torch.einsum("bhij,bjhd->bihd", probabilities, v)


def brute_force_visible(ids, window_left):
    batch, length = ids.shape
    seen = torch.zeros(batch, length, length, dtype=torch.bool)
    for b in range(batch):
        for i in range(length):
            for j in range(length):
                near = window_left is None or i - j <= window_left
                seen[b, i, j] = j <= i and near and ids[b, i] == ids[b, j]
    return seen


@settings(max_examples=40, deadline=None)
@given(
    length=st.integers(1, 70),
    window_left=st.integers(0, 24),
    cuts=st.lists(st.integers(1, 69), max_size=4),
    packed=st.booleans(),
)
def test_local_kernels_equal_the_mask(length, window_left, cuts, packed):
    ids = torch.stack(
        [torch.arange(length) * 0 + sum((torch.arange(length) >= c).long() for c in cuts), torch.zeros(length)]
    )
    ids = ids.long() if packed else torch.zeros(2, length, dtype=torch.long)
    query = torch.randn(2, length, 4, 6)
    key, value = torch.randn(2, length, 2, 6), torch.randn(2, length, 2, 6)
    documents = Documents.of(ids, ids if packed else None)
    expected = masked_attention(query, key, value, brute_force_visible(ids, window_left))
    for kernel in (attention.sdpa, attention.block_window):
        actual = kernel(query, key, value, documents, window_left)
        torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=1e-5)
    causal = masked_attention(query, key, value, brute_force_visible(ids, None))
    torch.testing.assert_close(
        attention.sdpa(query, key, value, documents, None).double(), causal, rtol=1e-4, atol=1e-5
    )


def test_the_block_path_is_linear_in_length(monkeypatch):
    """It never asks for a mask of S x S."""
    monkeypatch.setattr(Documents, "visible", lambda *a: pytest.fail("built a mask of the whole sequence"))
    x = torch.randn(1, 200, 2, 8)
    attention.block_window(x, x, x, Documents.of(torch.zeros(1, 200), None), 16)


def varlen_by_hand(query, key, value, query_lengths, key_lengths, longest_query, longest_key, *, window_size, **_):
    """What a varlen kernel computes: every document's queries are its last rows (aligned bottom right)."""
    assert len(query_lengths) == len(key_lengths) and query_lengths.dtype == key_lengths.dtype == torch.int32
    outputs = []
    for q0, q1, k0, k1 in zip(query_lengths, query_lengths[1:], key_lengths, key_lengths[1:], strict=False):
        q, k, v = query[q0:q1], key[k0:k1], value[k0:k1]
        assert 0 < len(q) <= len(k) and len(q) <= longest_query and len(k) <= longest_key
        rows = torch.arange(len(k) - len(q), len(k))[:, None] - torch.arange(len(k))[None]
        seen = (rows >= 0) & ((window_size[0] < 0) | (rows <= window_size[0]))
        outputs.append(masked_attention(q[None], k[None], v[None], seen[None])[0])
    assert sum(map(len, outputs)) == len(query) and key_lengths[-1] == len(key)
    return torch.cat(outputs).to(query.dtype)


@settings(max_examples=40, deadline=None)
@given(
    length=st.integers(1, 60),
    unasked=st.integers(0, 50),
    window_left=st.one_of(st.none(), st.integers(0, 24)),
    cuts=st.lists(st.integers(1, 59), max_size=4),
)
def test_every_kernel_takes_queries_that_are_the_last_rows(length, unasked, window_left, cuts):
    """A chunk of a row under context parallelism, behind what it sees of the rows before."""
    from torch.nn.attention import varlen

    unasked = min(unasked, length - 1)
    index = torch.arange(length)
    packed = torch.stack([sum(((index >= c).long() for c in cuts), index * 0), (index >= length // 2).long()])
    query = torch.randn(2, length - unasked, 4, 6)
    key, value = torch.randn(2, length, 2, 6), torch.randn(2, length, 2, 6)
    for ids in (packed, None):
        documents = Documents.of(packed, ids)
        seen = brute_force_visible(packed if ids is not None else packed * 0, window_left)[:, unasked:]
        expected = masked_attention(query, key, value, seen)
        kernels = [attention.sdpa] + [attention.block_window] * (window_left is not None)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(varlen, "varlen_attn", varlen_by_hand)
            patch.setattr(attention, "_varlen_parameters", lambda: {"enable_gqa"})
            for kernel in (*kernels, attention.varlen):
                actual = kernel(query, key, value, documents, window_left)
                torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=1e-5)


def test_a_span_is_cut_out_of_its_row():
    ids = torch.tensor([[0, 0, 0, 1, 2, 2], [5, 5, 5, 5, 5, 5]])
    span = Documents.of(ids, ids).span(2, 5)
    assert span.ids.tolist() == [[0, 1, 2], [5, 5, 5]]
    assert span.starts.long().tolist() == [[1, 1, 1], [1, 0, 0]]


def test_documents_are_freed_without_the_garbage_collector():
    """Masks of S x S hang on them; a cycle of references would keep those of many steps."""
    gc.disable()
    try:
        documents = row = Documents.of(torch.zeros(1, 40), (torch.arange(40) // 7)[None])
        span = documents.cached("span", partial(row.span, 10, 30))
        span.asked(5), span.additive_mask(3, torch.float32), documents.host_starts()
        freed = weakref.ref(documents)
        del documents, row, span
        assert freed() is None
    finally:
        gc.enable()


def test_positions_and_starts_restart_with_every_document():
    ids = torch.tensor([[0, 0, 0, 1, 2, 2], [5, 5, 5, 5, 5, 5]])
    documents = Documents.of(ids, ids)
    assert documents.positions.tolist() == [[0, 1, 2, 0, 0, 1], [0, 1, 2, 3, 4, 5]]
    assert documents.starts.long().tolist() == [[1, 0, 0, 1, 1, 0], [1, 0, 0, 0, 0, 0]]
    assert documents.cumulative_lengths().tolist() == [0, 3, 4, 6, 12]


@pytest.mark.parametrize(
    ("config", "device", "dtype", "said"),
    [
        (KernelConfig(local_attention=LocalKernel.varlen), "cpu", torch.bfloat16, "kernels.local_attention=varlen"),
        (KernelConfig(global_attention=GlobalKernel.flash_attn), "cpu", torch.float32, "runs on CUDA only"),
        (KernelConfig(global_attention=GlobalKernel.varlen), "cuda", torch.float32, "training.precision=bf16"),
        (KernelConfig(local_attention=LocalKernel.flash_attn), "cuda", torch.bfloat16, "not installed"),
    ],
)
def test_a_kernel_that_cannot_do_it_is_refused(config, device, dtype, said):
    with pytest.raises(UserError, match=said):
        attention.choose_kernels(config, torch.device(device), dtype)


def test_auto_means_exact_cpu_kernels():
    kernels = attention.choose_kernels(KernelConfig(), CPU, torch.bfloat16)
    assert (kernels.global_kernel, kernels.local_kernel) == (attention.sdpa, attention.block_window)
    kernels = attention.choose_kernels(KernelConfig(), torch.device("cuda"), torch.bfloat16)
    assert kernels.local_kernel is attention.varlen


def test_a_torch_without_windows_in_varlen_is_refused(monkeypatch):
    monkeypatch.setattr(attention, "_varlen_parameters", lambda: {"query", "is_causal"})
    config = KernelConfig(local_attention=LocalKernel.varlen)
    with pytest.raises(UserError, match="no windows"):
        attention.choose_kernels(config, torch.device("cuda"), torch.bfloat16)
