"""One visit of one layer as a tape: engines/megatron/layers.py, gate.py and recompute.py in bytes.

Names of tensors are those of that code. `x` is the layer's input; its storage belongs to the visit, the output's to
the next one. K1, V1 of earlier visits (`shared_key`, `shared_value`) are counted by `planning.memory`, here they
are empty; the copies that kernels make of them are not.
"""

from loopcoder_train.config import ActivationCheckpointing, GateInput
from loopcoder_train.planning.attention import attention_ops, keys_ops
from loopcoder_train.planning.rank import FP32_BYTES, Rank
from loopcoder_train.planning.tape import Op, Played, Recomputed, Step, Tensors, play


def norm_op(rank: Rank, tensors: Tensors, name: str, source: str, output: str) -> Op:
    """RMSNorm of this rank's rows."""
    numbers, size = rank.outer_rows * rank.model.hidden_size, rank.hidden_bytes
    tensors.add(output, size)
    scale = tensors.add(f"{name} scale", FP32_BYTES * rank.outer_rows)
    weight = rank.model.hidden_size * rank.element_bytes
    common = {"name": name, "inputs": (source,), "outputs": (output,), "weight_gradient": weight}
    if rank.kernels.fused_norm:
        return Op(saves=(source, scale), makes=(scale,), **common)
    fp32 = FP32_BYTES * numbers
    normalized = tensors.add(f"{name} normalized", fp32)
    if rank.element_bytes == FP32_BYTES:
        return Op(saves=(source, scale, normalized), makes=(scale, normalized), backward_work=3 * fp32, **common)
    copy = tensors.add(f"{name} input in fp32", fp32)
    made = (copy, scale, normalized)
    return Op(saves=made, makes=made, forward_work=fp32, backward_work=4 * fp32, **common)


def linear_op(
    rank: Rank, tensors: Tensors, name: str, source: str, output: str, in_width: int, out_width: int, *, row: bool
) -> Op:
    """A column- (`row`: row-) parallel linear with its collective; declares `output`.

    What a column-parallel linear gathers lies in Megatron's own buffer (`memory.gather_buffer`). A row-parallel one
    makes the product of all rows before it is summed and, backward, gathers the gradient.
    """
    split = rank.sequence_parallel
    element, model_width = rank.element_bytes, rank.model.hidden_size
    all_rows = rank.inner_rows * model_width * element
    tensors.add(output, (rank.outer_rows if row else rank.inner_rows) * out_width * element)
    return Op(
        name=name,
        inputs=(source,),
        outputs=(output,),
        saves=(source,),
        forward_work=all_rows if row and split else 0,
        backward_work=all_rows if split else 0,
        weight_gradient=in_width * out_width * element,
    )


def attention_block(rank: Rank, tensors: Tensors, *, full: bool) -> list[Step]:
    """x -> attended: input norm, projections, RoPE, attention (`full`, or gated), output projection."""
    model = rank.model
    element, rows = rank.element_bytes, rank.inner_rows
    qkv_width, rotated_width = rank.query_width + 2 * rank.kv_width, rank.query_width + rank.kv_width
    kv = rows * rank.kv_width * element
    ops: list[Step] = [norm_op(rank, tensors, "input_layernorm", "x", "normed")]
    ops.append(linear_op(rank, tensors, "qkv_proj", "normed", "qkv", model.hidden_size, qkv_width, row=False))
    tensors.add("rotated", rows * rotated_width * element)
    tensors.add("query", rows * rank.query_width * element, view_of="rotated")
    tensors.add("own_key", kv, view_of="rotated")
    tensors.add("own_value", kv, view_of="qkv")
    ops.append(_rope(rank, tensors, rows * rotated_width))
    ops.append(Op(name="split", inputs=("rotated",), outputs=("query", "own_key")))
    ops.append(Op(name="value", inputs=("qkv",), outputs=("own_value",)))
    tensors.add("attention", rows * rank.query_width * element)
    if not full:
        ops += gate_ops(rank, tensors)
    keys = ("own_key", "own_value")
    if rank.context > 1:
        ops += keys_ops(rank, tensors, full=full)
        keys = ("seen_key", "seen_value")
    core = attention_ops(rank, tensors, full=full)
    if rank.checkpointing is ActivationCheckpointing.selective:
        read = ("query", *keys) + (() if full else ("gate",))
        ops.append(Recomputed(ops=tuple(core), inputs=read, outputs=("attention",)))
    else:
        ops += core
    source = "attention"
    if rank.micro_batch_size > 1:  # [B, S] -> [S, B] moves the numbers
        source = tensors.add("attention rows", rows * rank.query_width * element)
        ops.append(Op(name="transpose", inputs=("attention",), outputs=(source,), passes_gradient=True))
    ops.append(linear_op(rank, tensors, "o_proj", source, "attended", rank.query_width, model.hidden_size, row=True))
    return ops


def _rope(rank: Rank, tensors: Tensors, numbers: int) -> Op:
    """Halves, products and sums in fp32, then back. The tables are counted by `planning.memory`."""
    in_fp32 = rank.element_bytes == FP32_BYTES
    return Op(
        name="rotate",
        inputs=("qkv",),
        outputs=("rotated",),
        forward_work=(4 if in_fp32 else 10) * numbers,
        backward_work=(8 if in_fp32 else 12) * numbers,
    )


def gate_ops(rank: Rank, tensors: Tensors) -> list[Step]:
    """The gate of this rank's heads, [B, S, H_local], from the layer's input or from the queries."""
    model = rank.model
    element, heads = rank.element_bytes, model.num_attention_heads
    tensors.add("gate", rank.inner_rows * rank.heads * element)
    if model.gate_input is GateInput.query:
        work = rank.inner_rows * rank.query_width * element
        gate = Op(name="gate", inputs=("query",), outputs=("gate",), saves=("query", "gate"),
                  forward_work=work, backward_work=work)  # fmt: skip
        return [gate]
    tensors.add("gate logits", rank.outer_rows * heads * element)
    return [
        norm_op(rank, tensors, "gate_norm", "x", "gate normed"),
        Op(
            name="gate",
            inputs=("gate normed",),
            outputs=("gate logits",),
            saves=("gate normed",),
            weight_gradient=heads * model.hidden_size * element,
        ),
        Op(name="sigmoid", inputs=("gate logits",), outputs=("gate",), saves=("gate",)),
    ]


def mlp_block(rank: Rank, tensors: Tensors) -> list[Step]:
    """h -> mlp: post-attention norm, gate and up in one, their product, down."""
    model = rank.model
    half = rank.inner_rows * rank.mlp_width * rank.element_bytes
    selective = rank.checkpointing is ActivationCheckpointing.selective
    ops: list[Step] = [norm_op(rank, tensors, "post_attention_layernorm", "h", "normed 2")]
    ops.append(
        linear_op(
            rank, tensors, "gate_up_proj", "normed 2", "gate_up", model.hidden_size, 2 * rank.mlp_width, row=False
        )
    )
    tensors.add("gate half", half, view_of="gate_up")
    tensors.add("up half", half, view_of="gate_up")
    tensors.add("silu", half)
    tensors.add("product", half)
    product: tuple[Step, ...] = (
        Op(name="chunk", inputs=("gate_up",), outputs=("gate half", "up half")),
        Op(name="silu", inputs=("gate half",), outputs=("silu",), saves=("gate half",)),
        Op(name="product", inputs=("silu", "up half"), outputs=("product",), saves=("silu", "up half")),
    )
    down = linear_op(rank, tensors, "down_proj", "product", "mlp", rank.mlp_width, model.hidden_size, row=True)
    if selective:
        ops.append(Recomputed(ops=product, inputs=("gate_up",), outputs=("product",)))
        # The product is made again for down_proj's weight gradient (recompute.down_without_product).
        down = Op(
            name=down.name, inputs=down.inputs, outputs=down.outputs, saves=("gate_up",),
            forward_work=down.forward_work, backward_work=down.backward_work + half,
            weight_gradient=down.weight_gradient,
        )  # fmt: skip
    else:
        ops += product
    return [*ops, down]


def play_visit(rank: Rank, *, full: bool, gradients_wait: bool) -> Played:
    """One visit of one layer: loop 1's and the sequential comparison's (`full`), or a later loop's gated one."""
    tensors = Tensors()
    for name in ("x", "h", "output"):
        tensors.add(name, rank.hidden_bytes)
    tensors.add("shared_key", 0)
    tensors.add("shared_value", 0)
    ops = attention_block(rank, tensors, full=full)
    ops.append(Op(name="add attended", inputs=("x", "attended"), outputs=("h",), passes_gradient=True))
    ops += mlp_block(rank, tensors)
    ops.append(Op(name="add mlp", inputs=("h", "mlp"), outputs=("output",), passes_gradient=True))
    if rank.checkpointing is ActivationCheckpointing.layer:
        ops = [Recomputed(ops=tuple(ops), inputs=("x",), outputs=("output",))]
        return play(ops, tensors, ("x",), "output", gradients_wait=gradients_wait)
    return play(ops, tensors, ("x",), "output", until_end=("attended",), gradients_wait=gradients_wait)
