"""The shape of a Parallel Loop Transformer and the choices the papers leave open (docs/plt.md)."""

from dataclasses import dataclass
from enum import Enum

from loopcoder_train.config.errors import require, require_positive


class GateInput(Enum):
    """What the global gate of G-SWA reads."""

    hidden = "hidden"  # the layer's input, through the gate's own RMSNorm (released models)
    query = "query"  # the rotated query of each head (PLT paper)


class LoopKind(Enum):
    """How the loops are connected."""

    parallel = "parallel"  # PLT: shifted loop input, loop 1's keys and values shared
    sequential = "sequential"  # comparison: h(r) = f(h(r-1)), every loop with its own full attention


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    """A PLT: `num_layers` weight-shared layers visited `num_loops` times. Sizes have no defaults on purpose.

    The defaults of everything else are the paper's: unit scales, no norm between loops. `configs/model/plt_7b.yaml`
    holds the released preset.
    """

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int  # rows of the embedding; at least the tokenizer's vocabulary, the same under every layout
    num_loops: int = 2
    loop_kind: LoopKind = LoopKind.parallel
    window_left: int = 64  # keys visible to the LEFT of the query in the local branch; with itself: window_left + 1
    gate_input: GateInput = GateInput.hidden
    embedding_scale: float = 1.0  # a in  B(r) = a E + b shift(N(h(r-1)))
    hidden_scale: float = 1.0  # b
    normalize_between_loops: bool = False  # N: the final RMSNorm (its weights shared) instead of the identity
    rope_theta: float = 500_000.0
    rms_norm_eps: float = 1e-5
    tie_embeddings: bool = False
    init_std: float = 0.02  # standard deviation of every matrix and embedding at the start
    max_position_embeddings: int = 131_072  # longest document, in tokens
    init_from: str | None = None  # RUN or RUN@STEP: the run whose weights this one starts from

    def __post_init__(self) -> None:
        require_positive(
            model__hidden_size=self.hidden_size,
            model__intermediate_size=self.intermediate_size,
            model__num_layers=self.num_layers,
            model__num_attention_heads=self.num_attention_heads,
            model__num_key_value_heads=self.num_key_value_heads,
            model__head_dim=self.head_dim,
            model__vocab_size=self.vocab_size,
            model__rope_theta=self.rope_theta,
            model__rms_norm_eps=self.rms_norm_eps,
            model__max_position_embeddings=self.max_position_embeddings,
        )
        require(
            self.num_loops >= 1,
            "model.num_loops",
            self.num_loops,
            "must be at least 1",
            "R = 1 is a plain model",
        )
        require(
            self.init_source is None or bool(self.init_source[0]),
            "model.init_from",
            repr(self.init_from),
            "must be the folder of a run, or FOLDER@STEP",
        )
        require(self.window_left >= 0, "model.window_left", self.window_left, "must be 0 or more keys to the left")
        require(self.init_std >= 0, "model.init_std", self.init_std, "must be 0 or more")
        require(self.head_dim % 2 == 0, "model.head_dim", self.head_dim, "must be even (RoPE rotates pairs)")
        require(
            self.num_attention_heads % self.num_key_value_heads == 0,
            "model.num_key_value_heads",
            self.num_key_value_heads,
            f"must divide model.num_attention_heads={self.num_attention_heads} (grouped-query attention)",
        )
        require(
            self.loop_kind is LoopKind.parallel
            or (self.embedding_scale, self.hidden_scale, self.normalize_between_loops) == (1.0, 1.0, False),
            "model.loop_kind",
            self.loop_kind.value,
            "h(r) = f(h(r-1)) has no scales and no norm between loops",
            "set model.embedding_scale=1 model.hidden_scale=1 model.normalize_between_loops=false",
        )

    @property
    def init_source(self) -> tuple[str, int | None] | None:
        """Folder of the run whose weights this one starts from, and the step (None: its newest good checkpoint)."""
        return None if self.init_from is None else run_and_step(self.init_from)

    @property
    def effective_depth(self) -> int:
        """Layers a token passes through: `num_loops * num_layers`."""
        return self.num_loops * self.num_layers

    @property
    def has_gates(self) -> bool:
        """Whether G-SWA gates exist: only a parallel loop with a second loop uses them."""
        return self.num_loops > 1 and self.loop_kind is LoopKind.parallel


def run_and_step(name: str) -> tuple[str, int | None]:
    """`RUN` or `RUN@STEP` -> (RUN, STEP)."""
    run, at, step = name.rpartition("@")
    return (run, int(step)) if at and step.isdecimal() else (name, None)
