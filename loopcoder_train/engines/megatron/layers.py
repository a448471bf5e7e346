"""One PLT layer from Megatron's parallel linears; activations are [S_local, B, d] between them.

Heads and the inner dim of the MLP are split over tensor-parallel ranks. S is this rank's part of the row under context
parallelism. With sequence parallelism the rows between the parallel linears are split too: S_local = S /
tensor_parallel_size, otherwise S_local = S.

q, k, v are one matrix, and gate, up are one: under sequence parallelism every column-parallel linear gathers its input
again, so one of each gathers twice per layer instead of five times. What happens between projection and output is the
plain model's own code.
"""

from collections.abc import Callable

import torch
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, distributed, nn

from loopcoder_train.config import ActivationCheckpointing, ModelConfig
from loopcoder_train.engines.megatron.gate import build_gate
from loopcoder_train.engines.megatron.norm import Norm, mark_split
from loopcoder_train.engines.megatron.recompute import down_without_product, recomputed, swiglu_product
from loopcoder_train.model.gated_attention import SharedKV, gated_attention
from loopcoder_train.model.plt import LoopStep
from loopcoder_train.model.rope import rotate


def column_parallel(
    input_size: int, output_size: int, config: TransformerConfig, group: distributed.ProcessGroup, **options: bool
) -> ColumnParallelLinear:
    """Linear without bias whose output features are split; `options` are Megatron's."""
    linear = ColumnParallelLinear(
        input_size,
        output_size,
        config=config,
        init_method=_not_used,
        bias=False,
        gather_output=False,
        tp_group=group,
        **options,
    )
    if linear.weight is not None:
        mark_split(linear.weight, dim=0)
    return linear


def row_parallel(
    input_size: int, output_size: int, config: TransformerConfig, group: distributed.ProcessGroup
) -> RowParallelLinear:
    """Linear without bias whose input features are split; the output is summed over ranks."""
    linear = RowParallelLinear(
        input_size,
        output_size,
        config=config,
        init_method=_not_used,
        bias=False,
        input_is_parallel=True,
        skip_bias_add=False,
        tp_group=group,
    )
    mark_split(linear.weight, dim=1)
    return linear


class Attention(nn.Module):
    """Self-attention over this rank's heads: causal in loop 1, gated sliding-window against K1, V1 afterwards."""

    def __init__(
        self,
        model: ModelConfig,
        config: TransformerConfig,
        group: distributed.ProcessGroup,
        recompute: ActivationCheckpointing,
    ):
        super().__init__()
        self.model, self.recompute_core = model, recompute is ActivationCheckpointing.selective
        self.heads = model.num_attention_heads // group.size()
        self.kv_heads = model.num_key_value_heads // group.size()
        query_size = model.num_attention_heads * model.head_dim
        kv_size = model.num_key_value_heads * model.head_dim
        self.qkv_proj = column_parallel(model.hidden_size, query_size + 2 * kv_size, config, group)
        self.o_proj = row_parallel(query_size, model.hidden_size, config, group)
        if model.has_gates:
            self.plt_gate = build_gate(model, config, group)

    def project(self, x: Tensor, step: LoopStep) -> tuple[Tensor, SharedKV]:
        """Rotated queries [B, S, H_local, D], and rotated keys and values [B, S, G_local, D], from [S_local, B, d]."""
        heads = self.qkv_proj(x)[0].transpose(0, 1).unflatten(-1, (-1, self.model.head_dim))
        rotated = rotate(heads[:, :, : self.heads + self.kv_heads], step.rope)
        query, key = rotated.split([self.heads, self.kv_heads], dim=2)
        return query, SharedKV(key, heads[:, :, self.heads + self.kv_heads :])

    def forward(
        self, layer_input: Tensor, normed: Tensor, shared: SharedKV | None, step: LoopStep, layer_index: int
    ) -> tuple[Tensor, SharedKV]:
        """Output [S_local, B, d] and this visit's keys and values; `shared` is loop 1's, None for full attention.

        Keys and values of a visit with full attention are of whole rows, those of later loops of this rank's rows.
        """
        query, own = self.project(normed, step)
        if shared is None:
            own = step.attend.gathered(own)
            output = self._core(step.attend.global_attention, query, own)
        else:
            gate = self.plt_gate(layer_input, query)
            step.observer.gate(step.loop_number, layer_index, gate)
            output = self._core(_gated, query, step.attend.with_halo(own), shared, gate, step)
        return self.o_proj(output.flatten(-2).transpose(0, 1).contiguous())[0], own

    def _core(self, attention: Callable[..., Tensor], *args: object) -> Tensor:
        return recomputed(attention, *args) if self.recompute_core and torch.is_grad_enabled() else attention(*args)


def _gated(query: Tensor, own: SharedKV, shared: SharedKV, gate: Tensor, step: LoopStep) -> Tensor:
    return gated_attention(query, own, shared, gate, step.attend)[0]


class SwiGLU(nn.Module):
    """down(silu(gate) * up) over this rank's inner features."""

    def __init__(
        self,
        model: ModelConfig,
        config: TransformerConfig,
        group: distributed.ProcessGroup,
        recompute: ActivationCheckpointing,
    ):
        super().__init__()
        self.recompute_product = recompute is ActivationCheckpointing.selective
        self.gate_up_proj = column_parallel(model.hidden_size, 2 * model.intermediate_size, config, group)
        self.down_proj = row_parallel(model.intermediate_size, model.hidden_size, config, group)

    def forward(self, x: Tensor) -> Tensor:
        """[S_local, B, d] -> [S_local, B, d]."""
        gate_up = self.gate_up_proj(x)[0]
        if self.recompute_product and torch.is_grad_enabled():
            return down_without_product(gate_up, lambda product: self.down_proj(product)[0])
        return self.down_proj(swiglu_product(gate_up))[0]


class Layer(nn.Module):
    """Pre-norm block: x + Attn(norm x), then x + SwiGLU(norm x)."""

    def __init__(
        self,
        model: ModelConfig,
        config: TransformerConfig,
        group: distributed.ProcessGroup,
        recompute: ActivationCheckpointing,
        layer_index: int,
    ):
        super().__init__()
        self.layer_index = layer_index
        self.recompute_layer = recompute is ActivationCheckpointing.layer
        self.input_layernorm = Norm(model.hidden_size, model.rms_norm_eps, config)
        self.self_attn = Attention(model, config, group, recompute)
        self.post_attention_layernorm = Norm(model.hidden_size, model.rms_norm_eps, config)
        self.mlp = SwiGLU(model, config, group, recompute)

    def forward(self, x: Tensor, shared: SharedKV | None, step: LoopStep) -> tuple[Tensor, SharedKV | None]:
        """[S_local, B, d] -> [S_local, B, d], and the keys and values of a visit with full attention.

        A later loop's own are read by nobody: they are let go.
        """
        recompute = self.recompute_layer and torch.is_grad_enabled()
        x, own = recomputed(self._visit, x, shared, step) if recompute else self._visit(x, shared, step)
        if shared is not None:
            return x, None
        if not recompute:
            return x, own
        # Copies: as views, K1 and V1 would keep the fused q, k, v alive (7B: 13312 numbers per token instead of 2048).
        return x, SharedKV(own.key.contiguous(), own.value.contiguous())

    def _visit(self, x: Tensor, shared: SharedKV | None, step: LoopStep) -> tuple[Tensor, SharedKV]:
        attended, own = self.self_attn(x, self.input_layernorm(x), shared, step, self.layer_index)
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x)), own


def _not_used(weight: Tensor) -> None:
    """Megatron asks for an initialiser; weights are filled from `model.init` instead."""
    raise AssertionError("perform_initialization is off")
