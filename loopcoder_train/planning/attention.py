"""What the attention kernels of model/attention.py keep and need, in bytes, as operations of a tape.

    flash        keeps q, k, v, the output and one fp32 number per head and row; backward makes dk, dv for every
                 query head and dq in fp32
    fused        (torch's SDPA) the same, with k and v repeated for every query head
    written out  (bf16 on CPUs) keeps scaled q, repeated k and v, and two numbers (fp32 and bf16) for every pair of
                 query and key that a block holds, visible or not

The flash kernels run on CUDA only, where this project has not run yet: their line follows their source.

Under context parallelism a rank has two chunks of queries. The global branch reads whole rows up to each chunk's end,
w (2 C + 1) / (2 C) rows of keys together; flash kernels copy the keys of documents that they are asked about, planned
here for the longest case, one document per row. The local branch reads each chunk behind its halo.
"""

from loopcoder_train.planning.rank import FP32_BYTES, AttentionMemory, Rank
from loopcoder_train.planning.tape import Op, Tensors

MIN_BLOCK = 16  # model/attention.py


def global_key_rows(rank: Rank) -> int:
    """Rows of keys that this rank's queries are held against in the global branch."""
    chunks = 2 * rank.context
    return rank.whole_rows if rank.context == 1 else rank.whole_rows * (chunks + 1) // chunks


def global_pairs(rank: Rank) -> int:
    """(query, key) pairs of one head in the global branch, masked ones included."""
    queries = rank.inner_rows // rank.micro_batch_size
    return queries * global_key_rows(rank) // (1 if rank.context == 1 else 2)


def local_key_rows(rank: Rank) -> int:
    """Rows of keys in the local branch: this rank's, behind their halos."""
    halos = 0 if rank.context == 1 else 2 * rank.micro_batch_size * rank.model.window_left
    return rank.inner_rows + halos


def local_blocks(rank: Rank) -> tuple[int, int] | None:
    """Rows padded to whole blocks, and a block's queries; None where the window needs one mask over all."""
    chunks = 1 if rank.context == 1 else 2
    length = local_key_rows(rank) // (chunks * rank.micro_batch_size)
    block = max(rank.model.window_left, MIN_BLOCK)
    if not rank.kernels.local_in_blocks or length <= 2 * block:
        return None
    return -(-length // block) * block * chunks * rank.micro_batch_size, block


def local_pairs(rank: Rank) -> int:
    """(query, key) pairs of one head in the local branch, masked ones included."""
    blocks = local_blocks(rank)
    if blocks is not None:
        return blocks[0] * 2 * blocks[1]
    chunks = 1 if rank.context == 1 else 2
    return rank.inner_rows * local_key_rows(rank) // (chunks * rank.micro_batch_size)


def keys_ops(rank: Rank, tensors: Tensors, *, full: bool) -> list[Op]:
    """Under context parallelism: gather the keys and values of whole rows (`full`), or fetch the halos."""
    element = rank.element_bytes
    own = 2 * rank.inner_rows * rank.kv_width * element
    tensors.add("stacked", own)
    stack = Op(name="stack", inputs=("own_key", "own_value"), outputs=("stacked",))
    together = rank.shared_kv_bytes if full else 2 * local_key_rows(rank) * rank.kv_width * element
    tensors.add("seen", together)
    tensors.add("seen_key", together // 2, view_of="seen")
    tensors.add("seen_value", together // 2, view_of="seen")
    work = own + together if full else 0
    fetch = Op(name="fetch", inputs=("stacked",), outputs=("seen",), forward_work=work, backward_work=together)
    return [stack, fetch, Op(name="keys", inputs=("seen",), outputs=("seen_key", "seen_value"))]


def attention_ops(rank: Rank, tensors: Tensors, *, full: bool) -> list[Op]:
    """From query, keys and values (and gate) to `attention`."""
    key, value = ("own_key", "own_value") if rank.context == 1 else ("seen_key", "seen_value")
    if full:
        return _kernel(rank, tensors, "global", key, value, "attention")
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
    by_loop_one = _kernel(rank, tensors, "global", "shared_key", "shared_value", "global_output")
    return [*by_loop_one, *_local(rank, tensors, key, value), blend]


def _local(rank: Rank, tensors: Tensors, key: str, value: str) -> list[Op]:
    """The window; by blocks, every block of queries has copies of its own and the previous block of keys."""
    blocks = local_blocks(rank)
    if blocks is None:
        return _kernel(rank, tensors, "local", key, value, "local_output")
    padded, element = blocks[0], rank.element_bytes
    tensors.add("query blocks", padded * rank.query_width * element)
    tensors.add("key blocks", 2 * padded * rank.kv_width * element)
    tensors.add("value blocks", 2 * padded * rank.kv_width * element)
    cuts = (("query", "query blocks"), (key, "key blocks"), (value, "value blocks"))
    cut = [
        Op(
            name=f"cut {source}",
            inputs=(source,),
            outputs=(target,),
            forward_work=tensors.sizes[target],
            backward_work=tensors.sizes[target],
        )
        for source, target in cuts
    ]
    return [*cut, *_kernel(rank, tensors, "local", "key blocks", "value blocks", "local_output", query="query blocks")]


def _kernel(
    rank: Rank, tensors: Tensors, branch: str, key: str, value: str, output: str, *, query: str = "query"
) -> list[Op]:
    """One branch, `global` or `local`; a rank with two chunks puts their outputs together."""
    kernels = rank.kernels
    memory = kernels.global_attention if branch == "global" else kernels.local_attention
    made = output if rank.context == 1 else tensors.add(f"{branch} chunks", tensors.sizes[output])
    # Gradients of K1 and V1 are added to what planning.memory counts; slices of two chunks are padded to whole rows.
    shared = rank.shared_kv_bytes * (1 if rank.context == 1 else 3) if key == "shared_key" else 0
    build = {
        AttentionMemory.flash: _flash,
        AttentionMemory.fused: _fused,
        AttentionMemory.written_out: _written_out,
    }[memory]
    ops = [build(rank, tensors, branch, (query, key, value), made, shared)]
    if made != output:
        ops.append(Op(name=f"{branch} together", inputs=(made,), outputs=(output,), passes_gradient=True))
    return ops


Seen = tuple[str, str, str]  # query, key, value


def _flash(rank: Rank, tensors: Tensors, branch: str, seen: Seen, output: str, shared: int) -> Op:
    query, key, value = seen
    element = rank.element_bytes
    rows = global_key_rows(rank) if branch == "global" else local_key_rows(rank)
    made = [tensors.add(f"{branch} logsumexp", FP32_BYTES * rank.inner_rows * rank.heads)]
    if rank.context > 1:  # keys of the documents that are asked about
        key = tensors.add(f"{branch} keys", rows * rank.kv_width * element)
        made.append(key)
    if rank.context > 1 or rank.micro_batch_size > 1:  # rows [S, B] are copied to [B S]
        value = tensors.add(f"{branch} values", rows * rank.kv_width * element)
        made.append(value)
    gradients = 2 * rows * rank.query_width * element + tensors.sizes[query] // element * FP32_BYTES
    return Op(
        name=f"{branch} attention",
        inputs=seen,
        outputs=(output,),
        saves=(query, key, value, output, made[0]),
        makes=tuple(made),
        backward_work=gradients + shared,
    )


def _repeated(rank: Rank, tensors: Tensors, branch: str, query: str) -> tuple[str, str]:
    """Keys and values with a head for every query head."""
    rows = global_key_rows(rank) if branch == "global" else local_key_rows(rank)
    if query == "query blocks":
        rows = 2 * tensors.sizes[query] // (rank.query_width * rank.element_bytes)
    size = rows * rank.query_width * rank.element_bytes
    return tensors.add(f"{branch} keys", size), tensors.add(f"{branch} values", size)


def _fused(rank: Rank, tensors: Tensors, branch: str, seen: Seen, output: str, shared: int) -> Op:
    query, key, value = seen
    logsumexp = tensors.add(f"{branch} logsumexp", FP32_BYTES * rank.inner_rows * rank.heads)
    made, work = [logsumexp], 0
    if rank.heads != rank.kv_heads:
        key, value = _repeated(rank, tensors, branch, query)
        made += [key, value]
        work = tensors.sizes[key] + tensors.sizes[value]
    return Op(
        name=f"{branch} attention",
        inputs=seen,
        outputs=(output,),
        saves=(query, key, value, output, logsumexp),
        makes=tuple(made),
        backward_work=work + shared,
    )


def _written_out(rank: Rank, tensors: Tensors, branch: str, seen: Seen, output: str, shared: int) -> Op:
    pairs = rank.heads * (global_pairs(rank) if branch == "global" else local_pairs(rank))
    made = (
        tensors.add(f"{branch} scaled query", tensors.sizes[seen[0]]),
        *_repeated(rank, tensors, branch, seen[0]),
        tensors.add(f"{branch} softmax", FP32_BYTES * pairs),
        tensors.add(f"{branch} probabilities", rank.element_bytes * pairs),
    )
    return Op(
        name=f"{branch} attention",
        inputs=seen,
        outputs=(output,),
        saves=made,
        makes=made,
        forward_work=FP32_BYTES * pairs,
        backward_work=(2 * FP32_BYTES - rank.element_bytes) * pairs + shared,
    )
