"""How one model and one batch are laid over processes. Changes speed and memory, never the result."""

from dataclasses import dataclass

from loopcoder_train.config.errors import UserError, require, require_positive


@dataclass(kw_only=True, slots=True)
class ParallelConfig:
    """Mesh axes: `world_size = tensor * pipeline * context * data`.

    Give `world_size` or `data_parallel_size`; the other follows. If both are given they must agree.
    """

    world_size: int | None = None  # processes; default: the product of the sizes below
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    context_parallel_size: int = 1
    data_parallel_size: int | None = None  # default: what world_size leaves
    sequence_parallel: bool = False  # split activations between the tensor-parallel regions along the sequence
    distributed_optimizer: bool = False  # split optimizer state over data-parallel ranks (ZeRO-1)
    overlap_grad_reduce: bool = False  # reduce gradients while the backward pass runs
    overlap_param_gather: bool = False  # gather updated weights while the next forward pass runs

    def __post_init__(self) -> None:
        for name in ("tensor_parallel_size", "pipeline_parallel_size", "context_parallel_size"):
            require_positive(**{f"parallel__{name}": getattr(self, name)})
        model_ranks = self.tensor_parallel_size * self.pipeline_parallel_size * self.context_parallel_size
        if self.data_parallel_size is not None:
            require_positive(parallel__data_parallel_size=self.data_parallel_size)
        if self.world_size is None:
            self.world_size = model_ranks * (self.data_parallel_size or 1)
        require_positive(parallel__world_size=self.world_size)
        if self.data_parallel_size is None:
            require(
                self.world_size % model_ranks == 0,
                "parallel.world_size",
                self.world_size,
                f"must be a multiple of tensor * pipeline * context parallel sizes = {model_ranks}",
            )
            self.data_parallel_size = self.world_size // model_ranks
        if model_ranks * self.data_parallel_size != self.world_size:
            raise UserError(
                f"parallel.world_size={self.world_size}: must equal tensor * pipeline * context * data "
                f"parallel sizes = {model_ranks * self.data_parallel_size}; set only one of parallel.world_size and "
                "parallel.data_parallel_size"
            )
        require(
            not self.sequence_parallel or self.tensor_parallel_size > 1,
            "parallel.sequence_parallel",
            self.sequence_parallel,
            f"needs parallel.tensor_parallel_size > 1, not {self.tensor_parallel_size}",
        )
        require(
            not self.overlap_param_gather or (self.distributed_optimizer and self.overlap_grad_reduce),
            "parallel.overlap_param_gather",
            self.overlap_param_gather,
            "needs parallel.distributed_optimizer=true and parallel.overlap_grad_reduce=true",
        )

    def layers_of_stage(self, num_layers: int, stage_index: int) -> tuple[int, int]:
        """First layer and stop of a pipeline stage. What does not divide goes to the first stages: the last has the
        head to compute."""
        each, left = divmod(num_layers, self.pipeline_parallel_size)
        first = stage_index * each + min(stage_index, left)
        return first, first + each + (stage_index < left)

    @property
    def sequence_parts(self) -> int:
        """What a sequence's length must be a multiple of: two chunks per context rank, each split over tensor ranks."""
        chunks = 2 * self.context_parallel_size if self.context_parallel_size > 1 else 1
        return chunks * (self.tensor_parallel_size if self.sequence_parallel else 1)
