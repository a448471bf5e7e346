"""The CUDA kernels against the plain mask: windows, documents, grouped heads, gradients. Needs a GPU.

pytest -m gpu tests/gpu
"""

from importlib.util import find_spec

import pytest
import torch

from loopcoder_train.config import GlobalKernel, KernelConfig, LocalKernel
from loopcoder_train.model import attention, build_model
from loopcoder_train.model.documents import Documents
from tests.conftest import RELEASED_PRESET, randomize, small_model

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
KERNELS = ["varlen", "flash_attn"]


def kernel_or_skip(name):
    if name == "flash_attn" and find_spec("flash_attn") is None:
        pytest.skip("the flash-attn package is not installed")
    return {"varlen": attention.varlen, "flash_attn": attention.flash_attn}[name]


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("window_left", [None, 0, 7, 64, 1000])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(4, 4, 64), (8, 2, 128)])
def test_output_and_gradients_equal_the_mask(name, window_left, packed, heads, kv_heads, head_dim):
    kernel = kernel_or_skip(name)
    batch, length = 3, 300
    ids = torch.arange(length, device="cuda").expand(batch, -1) // torch.tensor([[37], [130], [999]], device="cuda")
    tokens = torch.zeros(batch, length, dtype=torch.long, device="cuda")
    inputs = [
        torch.randn(batch, length, n, head_dim, device="cuda", dtype=torch.bfloat16)
        for n in (heads, kv_heads, kv_heads)
    ]
    upstream = torch.randn(batch, length, heads, head_dim, device="cuda", dtype=torch.bfloat16)

    def run(attend, dtype):
        leaves = [x.to(dtype).detach().requires_grad_() for x in inputs]
        output = attend(*leaves, Documents.of(tokens, ids if packed else None), window_left)
        output.backward(upstream.to(dtype))
        return [output, *(leaf.grad for leaf in leaves)]

    exact = run(attention.sdpa, torch.float64)
    rounded = run(attention.sdpa, torch.bfloat16)
    for actual, expected, yardstick in zip(run(kernel, torch.bfloat16), exact, rounded, strict=True):
        bound = 2 * (yardstick.double() - expected).abs().max() + 1e-3
        assert (actual.double() - expected).abs().max() <= bound


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("window_left", [None, 64])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("queries", [1, 236])
def test_queries_may_be_the_last_rows(name, window_left, packed, queries):
    """Context parallelism: a chunk of queries behind the keys that it sees of the rows before."""
    kernel = kernel_or_skip(name)
    length = 300
    ids = torch.arange(length, device="cuda").expand(3, -1) // torch.tensor([[37], [130], [999]], device="cuda")
    documents = Documents.of(ids, ids if packed else None)
    query = torch.randn(3, queries, 8, 128, device="cuda", dtype=torch.bfloat16)
    key, value = torch.randn(2, 3, length, 2, 128, device="cuda", dtype=torch.bfloat16)
    upstream = torch.randn_like(query)

    def run(attend, dtype):
        leaves = [x.to(dtype).detach().requires_grad_() for x in (query, key, value)]
        output = attend(*leaves, documents, window_left)
        output.backward(upstream.to(dtype))
        return [output, *(leaf.grad for leaf in leaves)]

    exact, rounded = run(attention.sdpa, torch.float64), run(attention.sdpa, torch.bfloat16)
    for actual, expected, yardstick in zip(run(kernel, torch.bfloat16), exact, rounded, strict=True):
        bound = 2 * (yardstick.double() - expected).abs().max() + 1e-3
        assert (actual.double() - expected).abs().max() <= bound


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("num_loops", [1, 2, 3])
def test_the_whole_model_in_bf16_stays_near_fp32(name, num_loops):
    kernel_or_skip(name)
    config = small_model(num_loops=num_loops, head_dim=16, window_left=9, **RELEASED_PRESET)
    named = KernelConfig(global_attention=GlobalKernel(name), local_attention=LocalKernel(name))
    tokens = torch.randint(0, config.vocab_size, (2, 130), device="cuda")
    ids = torch.arange(130, device="cuda").expand(2, -1) // 50
    exact = randomize(build_model(config), scale=0.1).cuda()(tokens, ids)
    by_mask = KernelConfig(global_attention=GlobalKernel.sdpa, local_attention=LocalKernel.sdpa)
    masked = randomize(build_model(config, by_mask), scale=0.1).cuda().bfloat16()(tokens, ids)
    actual = randomize(build_model(config, named), scale=0.1).cuda().bfloat16()(tokens, ids)
    assert (actual.float() - exact).abs().max() <= 2 * (masked.float() - exact).abs().max() + 1e-3
