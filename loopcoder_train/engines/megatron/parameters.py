"""This rank's tensors as boxes of released names: the one table of what is fused and what is split.

    qkv_proj.weight on rank t of T  =  rows t/T.. of q_proj, then of k_proj, then of v_proj
    o_proj.weight   on rank t of T  =  columns t/T.. of o_proj

Everything that names, fills, saves or compares a tensor of the stage goes through :func:`stage_layout`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from torch import Tensor, nn

from loopcoder_train.config import GateInput, ModelConfig
from loopcoder_train.model.names import EMBEDDING, HEAD, is_decayed, parameter_shapes
from loopcoder_train.model.state import TensorShard, flat_range_boxes

# Fused matrix -> what its rows are, in order.
_FUSED = {
    "self_attn.qkv_proj.weight": tuple(f"self_attn.{part}_proj.weight" for part in ("q", "k", "v")),
    "mlp.gate_up_proj.weight": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
}
_SPLIT_COLUMNS = ("self_attn.o_proj.weight", "mlp.down_proj.weight")
_WHOLE = ("norm.weight",)  # every norm's name ends so


@dataclass(frozen=True, slots=True)
class Part:
    """Some rows of a local parameter: the box of the tensor `name` that starts at `offsets`."""

    name: str
    global_shape: tuple[int, ...]
    offsets: tuple[int, ...]
    shape: tuple[int, ...]
    first_row: int  # in the local parameter

    @property
    def flat_start(self) -> int:
        """Where the part begins in the flattened local parameter."""
        return self.first_row * prod(self.shape[1:])

    @property
    def flat_stop(self) -> int:
        """Where it ends."""
        return self.flat_start + prod(self.shape)


@dataclass(frozen=True, slots=True)
class ParameterLayout:
    """A local parameter's parts, in row order, and whether every tensor rank holds the same.

    `is_copy`: another pipeline stage holds the same values and saves them.
    """

    parts: tuple[Part, ...]
    whole_on_every_rank: bool
    is_copy: bool

    @property
    def decayed(self) -> bool:
        """Whether AdamW decays it; what is fused agrees."""
        (decayed,) = {is_decayed(part.name) for part in self.parts}
        return decayed

    def shards(self, prefix: str, flat: Tensor, start: int, owner: bool) -> Iterator[TensorShard]:
        """Boxes of `prefix + name` backed by `flat`, elements [start, start + len) of the flattened local parameter."""
        stop = start + flat.numel()
        for part in self.parts:
            first, last = max(start, part.flat_start), min(stop, part.flat_stop)
            boxes = flat_range_boxes(part.shape, first - part.flat_start, last - part.flat_start)
            for offsets, lengths, low, high in boxes:
                base = part.flat_start - start
                yield TensorShard(
                    prefix + part.name,
                    part.global_shape,
                    tuple(whole + local for whole, local in zip(part.offsets, offsets, strict=True)),
                    flat[base + low : base + high].view(lengths),
                    owner,
                )


def stage_layout(stage: nn.Module, model: ModelConfig, rank: int, ranks: int) -> dict[nn.Parameter, ParameterLayout]:
    """The layout of every parameter of a stage on tensor rank `rank` of `ranks`."""
    shapes = parameter_shapes(model)
    layout = {}
    for local_name, parameter in stage.named_parameters():
        layout[parameter] = _parameter_layout(local_name, shapes, model, rank, ranks)
        rows = sum(part.shape[0] for part in layout[parameter].parts)
        assert parameter.shape == (rows, *layout[parameter].parts[0].shape[1:]), (local_name, parameter.shape)
    return layout


def _parameter_layout(
    local_name: str, shapes: dict[str, tuple[int, ...]], model: ModelConfig, rank: int, ranks: int
) -> ParameterLayout:
    parts, first_row, split = [], 0, None
    for name in _released_names(local_name, model):
        shape, split = shapes[name], _split_dim(name, model)
        offsets, local = [0] * len(shape), list(shape)
        if split is not None:
            local[split] = shape[split] // ranks
            offsets[split] = rank * local[split]
        parts.append(Part(name, shape, tuple(offsets), tuple(local), first_row))
        first_row += local[0]
    is_copy = model.tie_embeddings and local_name == HEAD
    return ParameterLayout(tuple(parts), whole_on_every_rank=split is None, is_copy=is_copy)


def _released_names(local_name: str, model: ModelConfig) -> list[str]:
    """The released names behind a name inside the stage."""
    if model.tie_embeddings and local_name == HEAD:  # the last stage's copy
        return [EMBEDDING]
    for fused, names in _FUSED.items():
        if local_name.endswith(fused):
            return ["model." + local_name.replace(fused, name) for name in names]
    return [local_name if local_name == HEAD else "model." + local_name]


def _split_dim(name: str, model: ModelConfig) -> int | None:
    """The dim that tensor ranks split: output features or heads (0), input features (1), or none."""
    if name.endswith(_WHOLE) or (".plt_gate." in name and model.gate_input is GateInput.hidden):
        return None
    return 1 if name.endswith(_SPLIT_COLUMNS) else 0
