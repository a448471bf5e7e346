"""The one place that chooses an attention kernel.

| kernel       | device | dtypes     | branch        | how the window and the documents are honoured             |
|--------------|--------|------------|---------------|-----------------------------------------------------------|
| sdpa         | any    | any        | global, local | additive mask [S, S] (none for global with one document)  |
| block_window | any    | any        | local         | blocks of queries x (previous + current) block of keys    |
| flash_attn   | cuda   | fp16, bf16 | global, local | flash-attn package, varlen with `window_size`             |
| varlen       | cuda   | fp16, bf16 | global, local | torch.nn.attention.varlen, FlashAttention-2 inside torch  |

Every kernel takes `query` [B, Q, H, D], `key`, `value` [B, S, G, D] (G divides H) and the :class:`Documents` of the S
rows, and returns [B, Q, H, D]. Q <= S: the queries are the last Q rows, as in FlashAttention; Q < S happens under
context parallelism only. A kernel that cannot honour what it is asked for is an error here, never a wider attention.
The two CUDA kernels have not been run on a GPU by this project yet; tests/gpu hold them against the mask.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor
from torch.nn import functional as F

from loopcoder_train.config import GlobalKernel, KernelConfig, LocalKernel, UserError
from loopcoder_train.model.documents import Documents, additive

Kernel = Callable[[Tensor, Tensor, Tensor, Documents, int | None], Tensor]

_MIN_BLOCK = 16  # queries per block of the block-window path, even for tiny windows


@dataclass(frozen=True, slots=True)
class AttentionKernels:
    """The kernels of one run, chosen once by :func:`choose_kernels`."""

    global_kernel: Kernel
    local_kernel: Kernel

    def global_attention(self, query: Tensor, key: Tensor, value: Tensor, documents: Documents) -> Tensor:
        """Causal attention inside documents."""
        return self.global_kernel(query, key, value, documents, None)

    def local_attention(
        self, query: Tensor, key: Tensor, value: Tensor, documents: Documents, window_left: int
    ) -> Tensor:
        """Causal attention inside documents over `window_left` keys to the left plus the query's own."""
        return self.local_kernel(query, key, value, documents, window_left)


def choose_kernels(config: KernelConfig, device: torch.device, dtype: torch.dtype) -> AttentionKernels:
    """Resolve `auto` for a device and dtype and check that the named kernels can run there.

    Raises:
        UserError: a kernel was asked for by name that this device, dtype or installation cannot run.
    """
    flash = "flash_attn" if _has_flash_attn() else "varlen"
    can_flash = device.type == "cuda" and dtype in (torch.float16, torch.bfloat16)
    global_name, local_name = config.global_attention.value, config.local_attention.value
    if config.global_attention is GlobalKernel.auto:
        global_name = flash if can_flash else "sdpa"
    if config.local_attention is LocalKernel.auto:
        local_name = flash if can_flash else "block_window"
    for option, name in (("global_attention", global_name), ("local_attention", local_name)):
        _require_runnable(f"kernels.{option}", name, device, dtype)
    return AttentionKernels(_KERNELS[global_name], _KERNELS[local_name])


def _require_runnable(option: str, name: str, device: torch.device, dtype: torch.dtype) -> None:
    if name not in ("flash_attn", "varlen"):
        return
    if device.type != "cuda":
        raise UserError(f"{option}={name}: runs on CUDA only, this run is on {device.type}; use {option}=auto")
    if dtype not in (torch.float16, torch.bfloat16):
        raise UserError(f"{option}={name}: needs training.precision=bf16, not {dtype}; use {option}=auto")
    if name == "flash_attn" and not _has_flash_attn():
        raise UserError(f"{option}={name}: the flash-attn package is not installed; pip install loopcoder-train[gpu]")
    if name == "varlen" and "window_size" not in _varlen_parameters():
        raise UserError(f"{option}={name}: torch {torch.__version__} has no windows in varlen_attn; install flash-attn")


def _has_flash_attn() -> bool:
    """Whether flash-attn 2 is installed; flash-attn 4 is another package with the same import name."""
    try:
        return version("flash-attn").startswith("2.")
    except PackageNotFoundError:
        return False


def sdpa(query: Tensor, key: Tensor, value: Tensor, documents: Documents, window_left: int | None) -> Tensor:
    """torch's scaled_dot_product_attention; a mask unless it is plain causal attention over whole rows."""
    queries = query.shape[1]
    # torch aligns `is_causal` with the first key, which is right for whole rows only
    plain_causal = window_left is None and documents.ids is None and queries == documents.sequence_length
    mask = None if plain_causal else documents.additive_mask(window_left, query.dtype, queries)
    key, value = _expand_heads(query, key.transpose(1, 2), value.transpose(1, 2))
    return _softmax_attention(query.transpose(1, 2), key, value, mask).transpose(1, 2)


def block_window(query: Tensor, key: Tensor, value: Tensor, documents: Documents, window_left: int | None) -> Tensor:
    """Exact sliding window in blocks of queries, each against its own and the previous block of keys: O(S * window).

    Rows are padded to whole blocks at the end; a padded query sees itself only and is cut off.
    """
    assert window_left is not None, "block_window is a local kernel"
    unasked = documents.sequence_length - query.shape[1]
    if unasked > 0:  # few (a window's halo): rows that nobody reads
        query = F.pad(query, (0, 0, 0, 0, unasked, 0))
        return block_window(query, key, value, documents, window_left)[:, unasked:]
    batch, length, heads, head_dim = query.shape
    block = max(window_left, _MIN_BLOCK)
    if length <= 2 * block:  # one or two blocks: the mask is no larger than what the blocks would compute
        return sdpa(query, key, value, documents, window_left)
    blocks = -(-length // block)

    def cut(x: Tensor) -> Tensor:  # [B, S, heads, D] -> [B, blocks, block, heads, D]
        return F.pad(x, (0, 0, 0, 0, 0, blocks * block - length)).unflatten(1, (blocks, block))

    def with_previous(x: Tensor) -> Tensor:  # -> [B * blocks, heads, 2 * block, D]
        x = cut(x)
        previous = F.pad(x, (0, 0, 0, 0, 0, 0, 1, 0))[:, :-1]
        return torch.cat([previous, x], dim=2).flatten(0, 1).transpose(1, 2)

    mask = documents.cached(
        ("blocks", window_left, query.dtype), lambda: _block_mask(documents, blocks, block, window_left, query.dtype)
    )
    key, value = _expand_heads(query, with_previous(key), with_previous(value))
    output = _softmax_attention(cut(query).flatten(0, 1).transpose(1, 2), key, value, mask)
    return output.transpose(1, 2).reshape(batch, blocks * block, heads, head_dim)[:, :length]


def _softmax_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of [B, H, S, D] under an additive `mask`; causal when it is None.

    In bf16 torch's fused CPU kernel takes 2-3 times as long, forward and backward, as the operators it stands for
    (docs/benchmarks/step_time.md), so there they are written out: scores rounded to bf16, softmax in fp32.
    """
    if mask is None or query.device.type != "cpu" or query.dtype is not torch.bfloat16:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=mask is None)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2) + mask
    return torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype) @ value


def _block_mask(documents: Documents, blocks: int, block: int, window_left: int, dtype: torch.dtype) -> Tensor:
    """[B * blocks, 1, block, 2 * block]: query i of a block against the previous and the current block of keys."""
    index = torch.arange(blocks * block, device=documents.device).view(blocks, block)
    key_index = torch.cat([index - block, index], dim=1)  # [blocks, 2 * block]
    distance = index[:, :, None] - key_index[:, None, :]
    seen = (distance >= 0) & (distance <= window_left) & (key_index >= 0)[:, None, :]
    seen = seen.expand(documents.batch_size, -1, -1, -1)
    if documents.ids is not None:
        padding = blocks * block - documents.sequence_length
        ids = F.pad(documents.ids, (0, padding), value=-1).unflatten(1, (blocks, block))
        previous = F.pad(ids, (0, 0, 1, 0), value=-1)[:, :-1]
        seen = seen & (ids[..., :, None] == torch.cat([previous, ids], dim=2)[..., None, :])
    return additive(seen.flatten(0, 1), dtype).unsqueeze(1)


def flash_attn(query: Tensor, key: Tensor, value: Tensor, documents: Documents, window_left: int | None) -> Tensor:
    """flash-attn 2's varlen kernel: documents as sequences, window as (left, 0)."""
    from flash_attn import flash_attn_varlen_func  # a CUDA-only extra

    rows = _VarlenRows(query, key, value, documents)
    output = flash_attn_varlen_func(
        rows.query,
        rows.key,
        rows.value,
        rows.query_lengths,
        rows.key_lengths,
        query.shape[1],
        documents.sequence_length,
        causal=True,
        window_size=(-1 if window_left is None else window_left, 0),
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )
    return output.view(query.shape)


def varlen(query: Tensor, key: Tensor, value: Tensor, documents: Documents, window_left: int | None) -> Tensor:
    """torch's own varlen FlashAttention-2; `window_size=(-1, 0)` is causal."""
    from torch.nn.attention.varlen import varlen_attn

    grouped = {}
    if key.shape[2] != query.shape[2]:
        if "enable_gqa" in _varlen_parameters():
            grouped = {"enable_gqa": True}
        else:
            key, value = (x.repeat_interleave(query.shape[2] // x.shape[2], dim=2) for x in (key, value))
    rows = _VarlenRows(query, key, value, documents)
    output = varlen_attn(
        rows.query,
        rows.key,
        rows.value,
        rows.query_lengths,
        rows.key_lengths,
        query.shape[1],
        documents.sequence_length,
        window_size=(-1 if window_left is None else window_left, 0),
        **grouped,
    )
    return output.view(query.shape)


class _VarlenRows:
    """Flattened rows and where documents begin in them: `query` [B * Q, H, D], `key`, `value` [keys, G, D]."""

    def __init__(self, query: Tensor, key: Tensor, value: Tensor, documents: Documents):
        self.query = query.flatten(0, 1)
        if query.shape[1] == documents.sequence_length:
            self.key, self.value = key.flatten(0, 1), value.flatten(0, 1)
            self.query_lengths = self.key_lengths = documents.cumulative_lengths()
            return
        asked = documents.asked(query.shape[1])
        self.key, self.value = asked.kept(key), asked.kept(value)
        self.query_lengths, self.key_lengths = asked.query_lengths, asked.key_lengths


def _varlen_parameters() -> set[str]:
    """Parameter names of this torch's varlen_attn: they moved between 2.10 and 2.13."""
    from torch.nn.attention.varlen import varlen_attn

    return set(inspect.signature(varlen_attn).parameters)


def _expand_heads(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Repeat key/value heads [B, G, S, D] for grouped queries `query` [B, S, H, D].

    torch's `enable_gqa` repeats them too, and on CPU it leaves the fused kernel for the slow one.
    """
    repeats = query.shape[2] // key.shape[1]
    if repeats == 1:
        return key, value
    return key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)


_KERNELS: dict[str, Kernel] = {
    "sdpa": sdpa,
    "block_window": block_window,
    "flash_attn": flash_attn,
    "varlen": varlen,
}
