"""The parameters of one rank, and one loop over its layers.

A :class:`Stage` holds no state of a forward pass: a loop gets its input and loop 1's keys and values, and returns its
output and its own keys and values. `loops.py` strings R calls into one graph; with pipeline parallelism the same Stage
is shared by R thin chunks, one per loop (`pipeline.py`).

    first stage   embedding; makes each loop's input
    every stage   a contiguous part of the layers
    last stage    final norm and head; applies N between loops, so that the norm's weights live on one stage only
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from megatron.core.tensor_parallel import VocabParallelEmbedding, vocab_parallel_cross_entropy
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from loopcoder_train.config import LoopKind, RunConfig
from loopcoder_train.engines.megatron.context import SplitRows, ZigZag
from loopcoder_train.engines.megatron.layers import Layer, column_parallel
from loopcoder_train.engines.megatron.mesh import Mesh
from loopcoder_train.engines.megatron.norm import Norm, mark_split
from loopcoder_train.engines.megatron.shift import Seams, shift_right
from loopcoder_train.model import IGNORE_INDEX
from loopcoder_train.model.attention import choose_kernels
from loopcoder_train.model.cross_loop import loop_input
from loopcoder_train.model.documents import Documents
from loopcoder_train.model.gated_attention import SharedKV, WholeRows
from loopcoder_train.model.observer import Observer
from loopcoder_train.model.plt import LoopStep
from loopcoder_train.model.rope import Rope, rope_tables


@dataclass(frozen=True, slots=True)
class BatchGeometry:
    """What all loops of one micro-batch share on this rank."""

    rope: Rope  # of this rank's positions, before sequence parallelism splits them
    attend: WholeRows | SplitRows
    local_starts: Tensor  # bool [S_local, B], the first token of every document


class Stage(MegatronModule):
    """This rank's parameters, on `device` in the run's precision.

    Parameter names are the released ones without `model.`, but for the fused `qkv_proj` and `gate_up_proj`. With tied
    embeddings and several stages the last one has its own copy of the embedding, called `lm_head`.
    """

    def __init__(self, run: RunConfig, config: TransformerConfig, mesh: Mesh, device: torch.device):
        super().__init__(config)
        self.model, self.mesh, self.device = run.model, mesh, device
        model, recompute, group = run.model, run.training.activation_checkpointing, mesh.tensor
        self.kernels = choose_kernels(run.kernels, device, config.params_dtype)
        self._sequence_parts = run.parallel.sequence_parts
        self.zigzag = ZigZag(mesh.context)
        self.seams = None if mesh.rows is None else Seams(mesh)
        with device:
            if mesh.is_first_stage:
                self.embed_tokens = VocabParallelEmbedding(
                    model.vocab_size,
                    model.hidden_size,
                    init_method=lambda weight: None,
                    reduce_scatter_embeddings=config.sequence_parallel,
                    config=config,
                    tp_group=group,
                )
                mark_split(self.embed_tokens.weight, dim=0)
            spans = [run.parallel.layers_of_stage(model.num_layers, stage) for stage in range(mesh.num_stages)]
            self.stage_of_layer = [stage for stage, (first, stop) in enumerate(spans) for _ in range(first, stop)]
            self.layers = nn.ModuleDict(  # keyed by the layer's index in the whole model
                {str(index): Layer(model, config, group, recompute, index) for index in range(*spans[mesh.stage_index])}
            )
            if mesh.is_last_stage:
                self.norm = Norm(model.hidden_size, model.rms_norm_eps, config)
                self.lm_head = column_parallel(
                    model.hidden_size,
                    model.vocab_size,
                    config,
                    group,
                    skip_weight_param_allocation=model.tie_embeddings and mesh.is_first_stage,
                )
        self._mark_tied_copies()
        self.to(config.params_dtype)

    def _mark_tied_copies(self) -> None:
        """Attributes by which Megatron sums the gradients of the embedding and its copy on the last stage."""
        self.pre_process = self.mesh.is_first_stage
        self.share_embeddings_and_output_weights = self.model.tie_embeddings and self.mesh.num_stages > 1
        if not self.share_embeddings_and_output_weights:
            return
        if self.mesh.is_first_stage:
            self.embed_tokens.weight.shared_embedding = True
        if self.mesh.is_last_stage:
            self.lm_head.weight.shared_embedding = True
            self.lm_head.weight.shared = True  # the gradient norm counts it on the first stage

    def shared_embedding_or_output_weight(self) -> nn.Parameter:
        """This stage's embedding or its copy; Megatron asks on the first and the last stage."""
        return self.embed_tokens.weight if self.mesh.is_first_stage else self.lm_head.weight

    def padded_length(self, length: int) -> int:
        """The shortest row of at least `length` tokens that this layout can split: parts alike, no window beyond one
        chunk."""
        needed = self.zigzag.num_chunks * self.model.window_left if self.zigzag.ranks > 1 else 0
        parts = self._sequence_parts
        return -(-max(length, needed) // parts) * parts

    def geometry(self, input_ids: Tensor, document_ids: Tensor | None) -> BatchGeometry:
        """Documents, RoPE tables and local document starts of a batch of whole rows [B, S].

        S is a multiple of what this rank's rows are split into.
        """
        documents = Documents.of(input_ids, document_ids)
        zigzag, model = self.zigzag, self.model
        rope = rope_tables(zigzag.cut(documents.positions), model.head_dim, model.rope_theta)
        if zigzag.ranks == 1:
            attend = WholeRows(self.kernels, documents, model.window_left)
        else:
            attend = SplitRows(self.kernels, documents, model.window_left, zigzag)
        starts = zigzag.cut(documents.starts).transpose(0, 1)
        if self.config.sequence_parallel:
            starts = starts.chunk(self.mesh.row_parts)[self.mesh.tensor.rank()]
        return BatchGeometry(rope, attend, starts)

    def embed(self, input_ids: Tensor) -> Tensor:
        """E of this rank's rows, [S_local, B, d], from whole rows of ids [B, S]."""
        embedding = self.embed_tokens(self.zigzag.cut(input_ids))
        return embedding if self.config.sequence_parallel else embedding.transpose(0, 1).contiguous()

    def between_loops(self, hidden: Tensor) -> Tensor:
        """N(h(r)), on the last stage: what the next loop's input is made of."""
        return self.norm(hidden) if self.model.normalize_between_loops else hidden

    def loop_input(
        self,
        loop_number: int,
        embedding: Tensor | None,
        previous: Tensor | None,
        geometry: BatchGeometry,
        observer: Observer,
    ) -> Tensor:
        """E for loop 1, a E + b shift(N(h(r-1))) later; h(r-1) itself in the sequential comparison.

        `previous` is N(h(r-1)), as :meth:`between_loops` made it on the last stage.
        """
        model = self.model
        if loop_number == 1:
            observer.loop_input(loop_number, embedding, None)
            return embedding
        if model.loop_kind is LoopKind.sequential:
            observer.loop_input(loop_number, None, previous)
            return previous
        shifted = shift_right(previous, geometry.local_starts, self.seams)
        observer.loop_input(loop_number, embedding, shifted)
        return loop_input(embedding, shifted, model.embedding_scale, model.hidden_scale)

    def run_loop(
        self,
        loop_number: int,
        x: Tensor,
        shared: Sequence[SharedKV | None],
        geometry: BatchGeometry,
        observer: Observer,
    ) -> tuple[Tensor, list[SharedKV | None]]:
        """This rank's layers once: [S_local, B, d] -> [S_local, B, d], and the keys and values of every layer.

        Args:
            shared: per layer, loop 1's keys and values; None for full attention over the loop's own, which are
                returned then.
        """
        step = LoopStep(loop_number, geometry.rope, geometry.attend, observer)
        own = []
        for layer, shared_kv in zip(self.layers.values(), shared, strict=True):
            x, kv = layer(x, shared_kv, step)
            own.append(kv)
        return x, own

    def local_logits(self, hidden: Tensor) -> Tensor:
        """Head(FinalNorm(h)): logits of this rank's rows and part of the vocabulary, on the last stage.

        [n, B, V_local]: the rows that sequence parallelism splits are whole again (n = S / context ranks).
        """
        shared = self.embed_tokens.weight if self.model.tie_embeddings and self.mesh.is_first_stage else None
        return self.lm_head(self.norm(hidden), weight=shared)[0]

    def token_losses(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy in nats, fp32 [n, B], of this rank's rows; 0 where `labels` [B, n] is IGNORE_INDEX.

        The same on every tensor rank. Megatron's loss overwrites the fp32 logits it is given; an ignored label lies in
        no rank's vocabulary.
        """
        labels = labels.transpose(0, 1).contiguous()
        losses = vocab_parallel_cross_entropy(self.local_logits(hidden).float(), labels)
        return losses * (labels != IGNORE_INDEX)
