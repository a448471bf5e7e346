"""Context parallelism's attention without processes: each rank is played in turn, its halo cut from the whole row."""

import torch

from loopcoder_train.engines.megatron.context import SplitRows, ZigZag
from loopcoder_train.model import attention
from loopcoder_train.model.documents import Documents
from loopcoder_train.model.gated_attention import SharedKV, WholeRows


class Group:
    """Rank and size of a process group."""

    def __init__(self, rank: int, size: int):
        self._rank, self._size = rank, size

    def rank(self) -> int:
        """The played rank."""
        return self._rank

    def size(self) -> int:
        """Ranks that share the row."""
        return self._size


def check_split_attention(
    kernel: str, ranks: int, packed: bool, device: torch.device, dtype: torch.dtype, tolerance: float
) -> None:
    """Outputs and gradients of both branches, all ranks together, against whole rows.

    `kernel`: "varlen", or "sdpa" for the CPU's two kernels. AssertionError beyond `tolerance` of the largest value.
    """
    global_kernel = {"varlen": attention.varlen, "sdpa": attention.sdpa}[kernel]
    local_kernel = {"varlen": attention.varlen, "sdpa": attention.block_window}[kernel]
    kernels = attention.AttentionKernels(global_kernel, local_kernel)
    length, window_left = 2 * ranks * 40, 16
    ids = (torch.arange(length, device=device) // 57).expand(2, -1) if packed else None
    documents = Documents.of(torch.zeros(2, length, device=device), ids)
    generator = torch.Generator().manual_seed(ranks)

    def random(heads: int) -> torch.Tensor:
        return torch.randn(2, length, heads, 64, generator=generator).to(device, dtype).requires_grad_()

    query, key, value = random(4), random(2), random(2)
    upstream = torch.randn(query.shape, generator=generator).to(device, dtype)
    whole = WholeRows(kernels, documents, window_left)
    for branch in ("global_attention", "local_attention"):
        expected = getattr(whole, branch)(query, SharedKV(key, value))
        wanted = [expected, *torch.autograd.grad(expected, (query, key, value), upstream)]
        found = [torch.zeros_like(x) for x in wanted]
        for rank in range(ranks):
            zigzag = ZigZag(Group(rank, ranks))
            split = SplitRows(kernels, documents, window_left, zigzag)
            seen = SharedKV(key, value)
            if branch == "local_attention":
                pieces = [slice(max(0, first - window_left), stop) for first, stop in zigzag.starts(length)]
                seen = SharedKV(*(torch.cat([x[:, piece] for piece in pieces], dim=1) for x in (key, value)))
            output = getattr(split, branch)(zigzag.cut(query), seen)
            gradients = torch.autograd.grad(output, (query, key, value), zigzag.cut(upstream))
            own = zigzag.cut(torch.arange(length, device=device)[None])[0]
            found[0][:, own] = output.detach()
            for total, gradient in zip(found[1:], gradients, strict=True):
                total += gradient
        for actual, correct in zip(found, wanted, strict=True):
            scale = float(correct.detach().float().abs().max())
            assert float((actual.float() - correct.detach().float()).abs().max()) <= tolerance * scale
