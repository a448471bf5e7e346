"""A tape by hand: what is kept, and the peaks."""

from loopcoder_train.planning.tape import Op, Recomputed, Tensors, play

TENSORS = Tensors()
for _name, _size in (("x", 8), ("a", 4), ("b", 2), ("y", 1), ("mask", 16)):
    TENSORS.add(_name, _size)
TENSORS.add("half of a", 2, view_of="a")


def chain(**last) -> list[Op]:
    """x -> a (keeps x) -> b (keeps a) -> y."""
    return [
        Op(name="first", inputs=("x",), outputs=("a",), saves=("x",), weight_gradient=5),
        Op(name="second", inputs=("a",), outputs=("b",), saves=("a",)),
        Op(name="last", inputs=("b",), outputs=("y",), **last),
    ]


def test_what_backward_needs_is_kept_and_the_output_is_not():
    played = play(chain(), TENSORS, ("x",), "y")
    assert played.kept == 8 + 4
    assert played.forward_peak == 8 + 4 + 2 + 1
    # dy 1, then db 2 beside it, da 4 beside db (a kept), then dx 8 and the weight's 5 beside da: a is gone
    assert played.backward_extra == max(1 + 2, 2 + 4, -4 + 4 + 8 + 5)


def test_work_counts_while_the_operation_runs_only():
    played = play(chain(forward_work=100, backward_work=50), TENSORS, ("x",), "y")
    assert played.kept == 12
    assert played.forward_peak == 8 + 4 + 2 + 1 + 100
    assert played.backward_extra == 1 + 2 + 50


def test_what_is_made_and_saved_stays_and_what_is_only_made_goes():
    assert play(chain(makes=("mask",), saves=("mask",)), TENSORS, ("x",), "y").kept == 12 + 16
    played = play(chain(makes=("mask",)), TENSORS, ("x",), "y")
    assert (played.kept, played.forward_peak) == (12, 8 + 4 + 2 + 1 + 16)


def test_a_view_keeps_the_whole_storage():
    ops = [
        Op(name="first", inputs=("x",), outputs=("a",)),
        Op(name="cut", inputs=("a",), outputs=("half of a",)),
        Op(name="last", inputs=("half of a",), outputs=("y",), saves=("half of a",)),
    ]
    assert play(ops, TENSORS, ("x",), "y").kept == 4


def test_recomputed_operations_keep_their_inputs_and_come_again():
    inner = Recomputed(ops=tuple(chain()), inputs=("x",), outputs=("y",))
    played = play([inner], TENSORS, ("x",), "y")
    assert played.kept == 8
    assert played.forward_peak == 8 + 4 + 2  # a goes when b is there
    # x is kept anyway; a comes again beside dy, b does not: nothing that is saved comes after a
    assert played.backward_extra == max(1 + 4 + 2, 4 + 2 + 4, 4 + 8 + 5)


def test_a_sum_hands_its_gradient_to_both():
    ops = [
        Op(name="branch", inputs=("x",), outputs=("a",), saves=("x",)),
        Op(name="add", inputs=("x", "a"), outputs=("b",), passes_gradient=True),
    ]
    played = play(ops, TENSORS, ("x",), "b")
    # one buffer of 2 for b, x and a; then what `branch` adds to x's gradient, 8, for a moment
    assert played.backward_extra == 2 + 8


def test_waiting_weight_gradients_pile_up():
    ops = [
        Op(name="one", inputs=("x",), outputs=("a",), weight_gradient=100),
        Op(name="two", inputs=("a",), outputs=("b",), weight_gradient=200),
    ]
    assert play(ops, TENSORS, ("x",), "b").backward_extra == 2 + 4 + 200
    assert play(ops, TENSORS, ("x",), "b", gradients_wait=True).backward_extra == 4 + 8 + 200 + 100
