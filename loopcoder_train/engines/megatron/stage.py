"""The parameters of one rank, and one loop over its layers.

A :class:`Stage` holds no state of a forward pass: a loop gets its input and loop 1's keys and values, and returns its
output and its own keys and values. `loops.py` strings R calls into one graph; with pipeline parallelism the same Stage
will be shared by R thin chunks, one per loop, that keep loop 1's keys and values between calls.
"""

from collections.abc import Sequence

import torch
from megatron.core.tensor_parallel import (
    VocabParallelEmbedding,
    gather_from_tensor_model_parallel_region,
    vocab_parallel_cross_entropy,
)
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, distributed, nn

from loopcoder_train.config import LoopKind, RunConfig
from loopcoder_train.engines.megatron.layers import Layer, column_parallel
from loopcoder_train.engines.megatron.norm import Norm, mark_split
from loopcoder_train.engines.megatron.shift import shift_right
from loopcoder_train.model import IGNORE_INDEX
from loopcoder_train.model.attention import choose_kernels
from loopcoder_train.model.cross_loop import loop_input
from loopcoder_train.model.documents import Documents
from loopcoder_train.model.gated_attention import SharedKV
from loopcoder_train.model.observer import Observer
from loopcoder_train.model.plt import LoopStep
from loopcoder_train.model.rope import Rope, rope_tables


class BatchGeometry:
    """What all loops of one micro-batch share on this rank: documents, RoPE tables, and this rank's document starts."""

    __slots__ = ("documents", "local_starts", "rope")

    def __init__(self, documents: Documents, rope: Rope, local_starts: Tensor):
        self.documents, self.rope = documents, rope
        self.local_starts = local_starts  # bool [S_local, B]


class Stage(MegatronModule):
    """Embedding, layers, final norm and head of this rank, on `device` in the run's precision.

    Parameter names are the released ones without `model.`, but for the fused `qkv_proj` and `gate_up_proj`.
    """

    def __init__(
        self, run: RunConfig, config: TransformerConfig, group: distributed.ProcessGroup, device: torch.device
    ):
        super().__init__(config)
        self.model, self.group, self.device = run.model, group, device
        model, recompute = run.model, run.training.activation_checkpointing
        self.kernels = choose_kernels(run.kernels, device, config.params_dtype)
        with device:
            self.embed_tokens = VocabParallelEmbedding(
                model.vocab_size,
                model.hidden_size,
                init_method=lambda weight: None,
                reduce_scatter_embeddings=config.sequence_parallel,
                config=config,
                tp_group=group,
            )
            mark_split(self.embed_tokens.weight, dim=0)
            self.layers = nn.ModuleDict(  # keyed by the layer's index in the whole model
                {str(index): Layer(model, config, group, recompute, index) for index in range(model.num_layers)}
            )
            self.norm = Norm(model.hidden_size, model.rms_norm_eps, config)
            self.lm_head = column_parallel(
                model.hidden_size,
                model.vocab_size,
                config,
                group,
                skip_weight_param_allocation=model.tie_embeddings,
            )
        self.to(config.params_dtype)

    @property
    def sequence_group(self) -> distributed.ProcessGroup | None:
        """The ranks over which rows are split, None when every rank has them all."""
        return self.group if self.config.sequence_parallel else None

    def geometry(self, input_ids: Tensor, document_ids: Tensor | None) -> BatchGeometry:
        """Documents, RoPE tables and local document starts of a batch [B, S]; S a multiple of the sequence parts."""
        documents = Documents.of(input_ids, document_ids)
        rope = rope_tables(documents.positions, self.model.head_dim, self.model.rope_theta)
        starts = documents.starts.transpose(0, 1)
        if self.sequence_group is not None:
            starts = starts.chunk(self.group.size())[self.group.rank()]
        return BatchGeometry(documents, rope, starts)

    def embed(self, input_ids: Tensor) -> Tensor:
        """E, [S_local, B, d] from [B, S]."""
        embedding = self.embed_tokens(input_ids)
        return embedding if self.config.sequence_parallel else embedding.transpose(0, 1).contiguous()

    def loop_input(
        self,
        loop_number: int,
        embedding: Tensor,
        previous: Tensor | None,
        geometry: BatchGeometry,
        observer: Observer,
    ) -> Tensor:
        """E for loop 1, a E + b shift(N(h(r-1))) later; h(r-1) itself in the sequential comparison."""
        model = self.model
        if loop_number == 1:
            observer.loop_input(loop_number, embedding, None)
            return embedding
        if model.loop_kind is LoopKind.sequential:
            observer.loop_input(loop_number, None, previous)
            return previous
        normed = self.norm(previous) if model.normalize_between_loops else previous
        shifted = shift_right(normed, geometry.local_starts, self.sequence_group)
        observer.loop_input(loop_number, embedding, shifted)
        return loop_input(embedding, shifted, model.embedding_scale, model.hidden_scale)

    def run_loop(
        self,
        loop_number: int,
        x: Tensor,
        shared: Sequence[SharedKV | None],
        geometry: BatchGeometry,
        observer: Observer,
    ) -> tuple[Tensor, list[SharedKV]]:
        """This rank's layers once: [S_local, B, d] -> [S_local, B, d], and the keys and values of every layer.

        Args:
            shared: per layer, loop 1's keys and values; None for full attention over the loop's own.
        """
        step = LoopStep(loop_number, geometry.rope, geometry.documents, self.kernels, observer)
        own = []
        for layer, shared_kv in zip(self.layers.values(), shared, strict=True):
            x, kv = layer(x, shared_kv, step)
            own.append(kv)
        return x, own

    def local_logits(self, hidden: Tensor) -> Tensor:
        """Head(FinalNorm(h)): [S, B, V_local] of all rows and this rank's part of the vocabulary."""
        tied = self.embed_tokens.weight if self.model.tie_embeddings else None
        return self.lm_head(self.norm(hidden), weight=tied)[0]

    def logits(self, hidden: Tensor) -> Tensor:
        """The whole logits [B, S, V] on every rank, from [S_local, B, d]; for measuring, never for training."""
        return gather_from_tensor_model_parallel_region(self.local_logits(hidden), group=self.group).transpose(0, 1)

    def token_losses(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy in nats, fp32 [S, B], 0 where `labels` [B, S] is IGNORE_INDEX; the same on every tensor rank.

        Megatron's loss overwrites the fp32 logits it is given; an ignored label lies in no rank's vocabulary.
        """
        labels = labels.transpose(0, 1).contiguous()
        losses = vocab_parallel_cross_entropy(self.local_logits(hidden).float(), labels)
        return losses * (labels != IGNORE_INDEX)
