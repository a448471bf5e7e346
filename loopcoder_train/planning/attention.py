"""What the attention kernels of model/attention.py keep and need, in bytes, as operations of a tape.

    flash        keeps q, k, v, the output and one fp32 number per head and row; backward makes dk, dv for every
                 query head and dq in fp32
    fused        (torch's SDPA) the same, with k and v repeated for every query head
    written out  (bf16 on CPUs) keeps scaled q, repeated k and v, and two numbers (fp32 and bf16) for every pair of
                 query and key that a block holds, visible or not

The flash kernels run on CUDA only, where this project has not run yet: their line follows their source.
"""

from loopcoder_train.planning.rank import FP32_BYTES, AttentionMemory, Rank
from loopcoder_train.planning.tape import Op, Tensors

MIN_BLOCK = 16  # model/attention.py


def attention_ops(rank: Rank, tensors: Tensors, *, full: bool) -> list[Op]:
    """From query, keys and values (and gate) to `attention`."""
    if full:
        return _global(rank, tensors, "own_key", "own_value", "attention")
    size = tensors.sizes["attention"]
    tensors.add("global_output", size)
    tensors.add("local_output", size)
    blend = Op(
        name="blend",
        inputs=("gate", "global_output", "local_output"),
        outputs=("attention",),
        saves=("gate", "global_output", "local_output"),
        backward_work=2 * size,
    )
    return [*_global(rank, tensors, "shared_key", "shared_value", "global_output"), *_local(rank, tensors), blend]


def _global(rank: Rank, tensors: Tensors, key: str, value: str, output: str) -> list[Op]:
    pairs = rank.inner_rows * rank.heads * rank.sequence_length
    return _kernel(rank, tensors, "global", rank.kernels.global_attention, key, value, output, rank.whole_rows, pairs)


def _local(rank: Rank, tensors: Tensors) -> list[Op]:
    """The window; by blocks, every block of queries has copies of its own and the previous block of keys."""
    kernels = rank.kernels
    block = max(rank.model.window_left, MIN_BLOCK)
    rows = rank.sequence_length // rank.context
    if not kernels.local_in_blocks or rows <= 2 * block:
        pairs = rank.inner_rows * rank.heads * rows
        return _kernel(
            rank,
            tensors,
            "local",
            kernels.local_attention,
            "own_key",
            "own_value",
            "local_output",
            rank.inner_rows,
            pairs,
        )
    padded = -(-rows // block) * block * rank.micro_batch_size
    element = rank.element_bytes
    tensors.add("query blocks", padded * rank.query_width * element)
    cut_key = tensors.add("key blocks", 2 * padded * rank.kv_width * element)
    cut_value = tensors.add("value blocks", 2 * padded * rank.kv_width * element)
    cut = [
        Op(
            name=f"cut {source}",
            inputs=(source,),
            outputs=(target,),
            forward_work=tensors.sizes[target],
            backward_work=tensors.sizes[target],
        )
        for source, target in (("query", "query blocks"), ("own_key", cut_key), ("own_value", cut_value))
    ]
    pairs = padded * rank.heads * 2 * block
    return [
        *cut,
        *_kernel(
            rank, tensors, "local", kernels.local_attention, cut_key, cut_value, "local_output", 2 * padded, pairs,
            query="query blocks",
        ),
    ]  # fmt: skip


def _kernel(
    rank: Rank,
    tensors: Tensors,
    name: str,
    memory: AttentionMemory,
    key: str,
    value: str,
    output: str,
    key_rows: int,
    pairs: int,
    query: str = "query",
) -> list[Op]:
    """One attention over `key_rows` rows of keys; `pairs` (query, key) pairs of all heads are computed."""
    element, queries = rank.element_bytes, tensors.sizes[query]
    logsumexp = tensors.add(f"{name} logsumexp", FP32_BYTES * rank.inner_rows * rank.heads)
    repeated = key_rows * rank.query_width * element
    shared_gradients = rank.shared_kv_bytes if key == "shared_key" else 0  # added to what planning.memory counts
    attend = {"name": f"{name} attention", "inputs": (query, key, value), "outputs": (output,)}
    if memory is AttentionMemory.flash:
        seen = [key, value]
        if rank.micro_batch_size > 1:  # rows [S, B] are copied to [B S]
            seen[1] = tensors.add(f"{name} flat value", key_rows * rank.kv_width * element)
        return [
            Op(
                saves=(query, *seen, output, logsumexp),
                makes=(logsumexp, *seen[1:]) if rank.micro_batch_size > 1 else (logsumexp,),
                backward_work=2 * repeated + queries // element * FP32_BYTES + shared_gradients,
                **attend,
            )
        ]
    seen = (tensors.add(f"{name} keys", repeated), tensors.add(f"{name} values", repeated))
    if memory is AttentionMemory.fused:
        made = (*seen, logsumexp) if rank.heads != rank.kv_heads else (logsumexp,)
        kept = seen if rank.heads != rank.kv_heads else (key, value)
        work = 2 * repeated if rank.heads != rank.kv_heads else 0
        return [
            Op(saves=(query, *kept, output, logsumexp), makes=made, backward_work=work + shared_gradients, **attend)
        ]
    scaled = tensors.add(f"{name} scaled query", queries)
    softmax = tensors.add(f"{name} softmax", FP32_BYTES * pairs)
    rounded = tensors.add(f"{name} probabilities", element * pairs)
    made = (scaled, *seen, softmax, rounded)
    work = {"forward_work": FP32_BYTES * pairs, "backward_work": (2 * FP32_BYTES - element) * pairs + shared_gradients}
    return [Op(saves=made, makes=made, **work, **attend)]
