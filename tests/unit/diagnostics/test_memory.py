"""Nothing that a lens holds grows with the square of a document's length: counted in numbers and bytes, not in time."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from loopcoder_train.diagnostics.attention import AttentionReader
from loopcoder_train.diagnostics.dynamics import DynamicsReader
from loopcoder_train.diagnostics.measure import measure
from loopcoder_train.diagnostics.measurements import Measurements
from loopcoder_train.diagnostics.output import OutputReader
from loopcoder_train.diagnostics.samples import Sample, SampledRow
from loopcoder_train.engines.engine import MicroBatch
from loopcoder_train.model import build_model
from tests.conftest import small_model
from tests.distributed.peak_memory import PeakMemory

PIECE = 4096
CONFIG = small_model(num_loops=2, vocab_size=257)
H, G, D, HIDDEN = CONFIG.num_attention_heads, CONFIG.num_key_value_heads, CONFIG.head_dim, CONFIG.hidden_size


class Largest(TorchDispatchMode):
    """Numbers in the largest tensor that any operator returns."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        sizes = [x.numel() for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
        self.numel = max([self.numel, *sizes])
        return result


def attention_pass(length, piece=PIECE):
    """Both loops' visits of one layer, all queries of one document."""
    samples = [Sample(0, 0, length)]
    query, key, shared = (torch.randn(1, length, heads, D) for heads in (H, G, G))
    gate = torch.rand(1, length, H)
    reader = AttentionReader(CONFIG, samples, Measurements(), most_queries=None, piece_elements=piece)

    def run():
        reader.attention(1, 0, {"query": query, "key": shared})
        reader.gate(2, 0, gate)
        reader.attention(2, 0, {"query": query, "key": key, "shared_key": shared})
        reader.finish()

    return run, [query, key, shared, gate]


def state_pass(length, piece=PIECE):
    """Dynamics and output of two loops."""
    samples = [Sample(0, 0, length)]
    embedding, first, second = (torch.randn(1, length, HIDDEN) for _ in range(3))
    head = torch.randn(HIDDEN, CONFIG.vocab_size)
    labels = torch.zeros(length, dtype=torch.long)
    found = Measurements()
    dynamics = DynamicsReader(CONFIG, samples, lambda x: x * 2.0, found)
    output = OutputReader(
        samples, labels, lambda h: h @ head, found, vocab_size=CONFIG.vocab_size, piece_elements=piece
    )

    def run():
        dynamics.loop_input(1, embedding, None)
        for loop, hidden in ((1, first), (2, second)):
            dynamics.loop_output(loop, hidden)
            output.loop_output(loop, hidden)
        output.finish()

    return run, [embedding, first, second, head, labels]


@torch.no_grad()
@pytest.mark.parametrize("make", [attention_pass, state_pass])
def test_the_largest_tensor_is_a_piece_or_grows_with_the_length(make):
    for length in (64, 256):
        run, _ = make(length)
        with Largest() as largest:
            run()
        row = max(H * length, CONFIG.vocab_size)  # a piece has at least one row
        states = length * max(HIDDEN, H * D)
        assert largest.numel <= max(PIECE, row, states, HIDDEN * HIDDEN)
    assert length * length * H > 20 * largest.numel  # the whole A(r) would be that much


@torch.no_grad()
@pytest.mark.parametrize(("make", "matrices"), [(attention_pass, 8), (state_pass, 6)])
def test_the_peak_is_some_pieces_and_what_grows_with_the_length(make, matrices):
    """docs/diagnostics.md: at most 8 matrices of a piece at a time, 6 where nobody attends."""
    piece, length = 1 << 16, 256
    run, given = make(length, piece)
    with PeakMemory(given) as memory:
        before = memory.peak_bytes
        run()
    of_the_document = 2 * 8 * length * max(HIDDEN, H * D) + 4 * 8 * HIDDEN * HIDDEN
    assert memory.peak_bytes - before <= matrices * 4 * piece + of_the_document


def peak_of_a_row(num_layers, length):
    """Bytes beyond the weights that all lenses on one document of a model of three loops hold, in fp32."""
    model = build_model(small_model(num_loops=3, num_layers=num_layers)).requires_grad_(False)
    tokens = torch.arange(length)[None] % 61
    batch = MicroBatch(tokens, tokens.roll(-1, dims=1), torch.zeros_like(tokens), torch.zeros(1, dtype=torch.long))
    with PeakMemory([*model.parameters(), tokens]) as memory:
        before = memory.peak_bytes
        measure(model, [SampledRow(batch, [Sample(0, 0, length)])], most_queries=2)
    return memory.peak_bytes - before


def test_every_layer_adds_queries_gates_and_three_pairs_of_keys_and_values():
    """docs/diagnostics.md, of the whole forward pass with its fixed points."""
    length = 64
    of_a_layer = (peak_of_a_row(6, length) - peak_of_a_row(2, length)) / 4
    assert of_a_layer == 4 * length * (H * D + H + 6 * G * D)
