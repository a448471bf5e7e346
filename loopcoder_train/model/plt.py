"""The Parallel Loop Transformer: one stack of layers, visited R times (plt.md section 1).

    loop 1:    h(1) = f(E)                                # causal attention; K1, V1 of every layer are kept
    loop r>=2: h(r) = f(a E + b shift(N(h(r-1))); K1, V1) # gated sliding-window attention in every layer
    logits   = Head(FinalNorm(h(R)))

R = 1 is a plain Llama. `loop_kind=sequential` is the comparison model h(r) = f(h(r-1)), every loop with its own full
attention. Module names are the released checkpoint's, so `state_dict()` needs no translation.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loopcoder_train.config import KernelConfig, LoopKind, ModelConfig
from loopcoder_train.model.attention import choose_kernels
from loopcoder_train.model.cross_loop import loop_input, shift_right
from loopcoder_train.model.documents import Documents
from loopcoder_train.model.gated_attention import Attend, SharedKV, WholeRows, build_gate, gated_attention
from loopcoder_train.model.init import initialize
from loopcoder_train.model.layers import RMSNorm, SwiGLU
from loopcoder_train.model.observer import Observer
from loopcoder_train.model.rope import Rope, rope_tables, rotate


class Attention(nn.Module):
    """Self-attention of one layer: causal in loop 1, gated sliding-window against loop 1's K, V afterwards."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        query_size = config.num_attention_heads * config.head_dim
        kv_size = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, kv_size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, kv_size, bias=False)
        self.o_proj = nn.Linear(query_size, config.hidden_size, bias=False)
        if config.has_gates:
            self.plt_gate = build_gate(config)

    def project(self, x: Tensor, rope: Rope) -> tuple[Tensor, SharedKV]:
        """Rotated queries [B, S, H, D] and this loop's own rotated keys and values [B, S, G, D]."""
        head_dim = self.config.head_dim
        query, key, value = (
            projection(x).unflatten(-1, (-1, head_dim)) for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        return rotate(query, rope), SharedKV(rotate(key, rope), value)

    def forward(
        self, layer_input: Tensor, normed: Tensor, shared: SharedKV | None, step: "LoopStep", layer_index: int
    ) -> tuple[Tensor, SharedKV]:
        """Output [B, S, d] and the keys and values of this visit; `shared` is loop 1's, None for full attention."""
        query, own = self.project(normed, step.rope)
        seen = {"query": query, "key": own.key, "value": own.value}
        if shared is None:
            output = step.attend.global_attention(query, own)
        else:
            gate = self.plt_gate(layer_input, query)
            output, global_output, local_output = gated_attention(query, own, shared, gate, step.attend)
            step.observer.gate(step.loop_number, layer_index, gate)
            seen |= {"shared_key": shared.key, "shared_value": shared.value}
            seen |= {"global_output": global_output, "local_output": local_output}
        step.observer.attention(step.loop_number, layer_index, seen)
        return self.o_proj(output.flatten(-2)), own


class Layer(nn.Module):
    """Pre-norm block: x + Attn(norm x), then x + SwiGLU(norm x)."""

    def __init__(self, config: ModelConfig, layer_index: int):
        super().__init__()
        self.layer_index = layer_index
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = SwiGLU(config.hidden_size, config.intermediate_size)

    def forward(self, x: Tensor, shared: SharedKV | None, step: "LoopStep") -> tuple[Tensor, SharedKV]:
        """[B, S, d] -> [B, S, d], and this visit's own keys and values."""
        attended, own = self.self_attn(x, self.input_layernorm(x), shared, step, self.layer_index)
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x)), own


class LoopStep:
    """What all layers of one loop share: its number, RoPE tables, both attention branches and the observer."""

    __slots__ = ("attend", "loop_number", "observer", "rope")

    def __init__(self, loop_number: int, rope: Rope, attend: Attend, observer: Observer):
        self.loop_number, self.rope, self.attend, self.observer = loop_number, rope, attend, observer


@dataclass(frozen=True, slots=True)
class Rows:
    """What all loops over the rows of one forward pass share: E [B, S, d], RoPE tables and both attention branches."""

    embedding: Tensor
    documents: Documents
    rope: Rope
    attend: Attend

    def step(self, loop_number: int, observer: Observer) -> LoopStep:
        """What the layers of one loop share."""
        return LoopStep(loop_number, self.rope, self.attend, observer)


class Backbone(nn.Module):
    """Embedding, the weight-shared layers and the final norm (the `model.` part of every parameter name)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, index) for index in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class PLT(nn.Module):
    """The definition. Use :func:`build_model` for one with initial values.

    The attention kernels are chosen at the first forward pass for the device and dtype the weights are on.
    """

    def __init__(self, config: ModelConfig, kernels: KernelConfig | None = None):
        super().__init__()
        self.config, self.kernel_config = config, kernels or KernelConfig()
        self.model = Backbone(config)
        self.lm_head = None if config.tie_embeddings else nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(
        self, input_ids: Tensor, document_ids: Tensor | None = None, observer: Observer | None = None
    ) -> Tensor:
        """Logits [B, S, V] of the last loop.

        Args:
            input_ids: int64 [B, S].
            document_ids: int64 [B, S], non-decreasing inside a row; None: every row is one document.
            observer: sees loop inputs, attention, gates and loop outputs.

        Raises:
            ValueError: `document_ids` has another shape than `input_ids`.
        """
        for visited in self.loops(input_ids, document_ids, observer):
            hidden, _ = visited
        return self.logits(hidden)

    def loops(
        self, input_ids: Tensor, document_ids: Tensor | None = None, observer: Observer | None = None
    ) -> Iterator[tuple[Tensor, list[SharedKV]]]:
        """Run the loops one by one: yields h(r) [B, S, d] and the keys and values of its own visits, for r = 1..R."""
        config, observer = self.config, observer or Observer()
        rows, hidden = self.rows(input_ids, document_ids), None
        shared: list[SharedKV | None] = [None] * config.num_layers
        for loop_number in range(1, config.num_loops + 1):
            step = rows.step(loop_number, observer)
            x = self.loop_input(rows, hidden, step)
            hidden, own = self.visit_layers(x, shared, step)
            observer.loop_output(loop_number, hidden)
            yield hidden, own
            if config.loop_kind is LoopKind.parallel and loop_number == 1:
                shared = own

    def rows(self, input_ids: Tensor, document_ids: Tensor | None = None) -> Rows:
        """Embedding, documents, RoPE tables and attention branches of a batch [B, S]."""
        documents = Documents.of(input_ids, document_ids)
        rope = rope_tables(documents.positions, self.config.head_dim, self.config.rope_theta)
        weight = self.model.embed_tokens.weight
        kernels = choose_kernels(self.kernel_config, weight.device, weight.dtype)
        attend = WholeRows(kernels, documents, self.config.window_left)
        return Rows(self.model.embed_tokens(input_ids), documents, rope, attend)

    def loop_input(self, rows: Rows, previous: Tensor | None, step: LoopStep) -> Tensor:
        """E for loop 1, B(r) made of `previous` = h(r-1) later (h(r-1) itself in the sequential comparison)."""
        config = self.config
        if previous is None:
            step.observer.loop_input(step.loop_number, rows.embedding, None)
            return rows.embedding
        if config.loop_kind is LoopKind.sequential:
            step.observer.loop_input(step.loop_number, None, previous)
            return previous
        shifted = shift_right(self.between_loops(previous), rows.documents.starts)
        step.observer.loop_input(step.loop_number, rows.embedding, shifted)
        return loop_input(rows.embedding, shifted, config.embedding_scale, config.hidden_scale)

    def between_loops(self, hidden: Tensor) -> Tensor:
        """N(h): the final norm with its shared weights, or the identity."""
        return self.model.norm(hidden) if self.config.normalize_between_loops else hidden

    def visit_layers(
        self, x: Tensor, shared: Sequence[SharedKV | None], step: LoopStep
    ) -> tuple[Tensor, list[SharedKV]]:
        """f(x; K1, V1): all layers once, [B, S, d] -> [B, S, d], and the keys and values of this visit.

        `shared`: loop 1's keys and values of every layer; None for full attention over the visit's own.
        """
        own = []
        for layer, shared_kv in zip(self.model.layers, shared, strict=True):
            x, kv = layer(x, shared_kv, step)
            own.append(kv)
        return x, own

    def logits(self, hidden: Tensor) -> Tensor:
        """Head(FinalNorm(h)): [B, S, V] from [B, S, d]."""
        head = self.model.embed_tokens.weight if self.lm_head is None else self.lm_head.weight
        return F.linear(self.model.norm(hidden), head)


def build_model(config: ModelConfig, kernels: KernelConfig | None = None, seed: int = 0) -> PLT:
    """A PLT on the default device with its initial values, a pure function of (seed, parameter name).

    Under ``with torch.device("meta")`` nothing is allocated: shapes and counts only.
    """
    device = torch.get_default_device()
    with torch.device("meta"):  # torch's own initial values would be computed and thrown away
        model = PLT(config, kernels)
    if device.type != "meta":
        initialize(model.to_empty(device=device), config, seed)
    return model
