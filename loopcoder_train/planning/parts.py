"""What a stage runs around its layers, as tapes: the input of later loops, the final norm, the head with the loss."""

from loopcoder_train.config import LoopKind
from loopcoder_train.planning.layer import linear_op, norm_op
from loopcoder_train.planning.rank import FP32_BYTES, Rank
from loopcoder_train.planning.tape import Op, Played, Step, Tensors, play

NOTHING = Played(0, 0, 0)


def play_loop_input(rank: Rank, *, norm: bool, shift: bool) -> Played:
    """h(r-1) -> a E + b shift(N(h(r-1))) (engines/megatron/stage.py).

    With several stages the last one has the norm and the first one the shift; the gradient of E is counted by
    `planning.memory`. The sequential comparison does nothing here.
    """
    tensors = Tensors()
    names = ("x", "normed", "shifted", "masked", "output")
    for name in names:
        tensors.add(name, rank.hidden_bytes)
    ops: list[Step] = []
    if norm and rank.model.normalize_between_loops:
        ops.append(norm_op(rank, tensors, "norm", "x", "normed"))
    if shift:
        ops += [
            Op(name="shift", inputs=(ops[-1].outputs[0] if ops else "x",), outputs=("shifted",)),
            Op(name="mask", inputs=("shifted",), outputs=("masked",)),
            Op(
                name="add",
                inputs=("masked",),
                outputs=("output",),
                forward_work=2 * rank.hidden_bytes,
                backward_work=rank.hidden_bytes,
            ),
        ]
    if not ops or rank.model.loop_kind is LoopKind.sequential:
        return NOTHING
    return play(ops, tensors, ("x",), ops[-1].outputs[0])


def play_head(rank: Rank) -> Played:
    """h(R) -> final norm -> logits of this rank's vocabulary -> fp32 -> loss of every token.

    Megatron's loss turns the fp32 logits into probabilities and into their gradient in place.
    """
    model, tensors = rank.model, Tensors()
    tensors.add("x", rank.hidden_bytes)
    norm = norm_op(rank, tensors, "norm", "x", "normed")
    head = linear_op(rank, tensors, "lm_head", "normed", "logits", model.hidden_size, rank.vocab_width, row=False)
    tensors.add("losses", FP32_BYTES * rank.inner_rows)
    tensors.add("probabilities", fp32_logits_bytes(rank))
    loss = {"name": "loss", "inputs": ("logits",), "outputs": ("losses",)}
    if rank.element_bytes == FP32_BYTES:  # the logits are their own probabilities and gradient
        head = Op(
            name=head.name, inputs=head.inputs, outputs=head.outputs, saves=("normed", "logits"),
            backward_work=head.backward_work, weight_gradient=head.weight_gradient,
        )  # fmt: skip
        ops = [norm, head, Op(passes_gradient=True, **loss)]
    else:
        ops = [norm, head, Op(makes=("probabilities",), saves=("probabilities",), **loss)]
    return play(ops, tensors, ("x",), "losses")


def fp32_logits_bytes(rank: Rank) -> int:
    """Bytes of one micro-batch's logits in fp32 on the last stage."""
    return FP32_BYTES * rank.inner_rows * rank.vocab_width


def embedding_gradient_bytes(rank: Rank) -> int:
    """Bytes of this rank's whole embedding gradient: dense, however few tokens occur."""
    return rank.vocab_width * rank.model.hidden_size * rank.element_bytes
