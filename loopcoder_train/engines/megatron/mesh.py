"""Where this rank stands: its process groups on Megatron's mesh, as the rest of the engine sees them.

tensor         ranks that hold parts of the same matrices
context        ranks that hold parts of the same sequences
pipeline       ranks that hold the layers one after the other
data           ranks that see other sequences
replicas       data x context: ranks that hold the same parameters; gradients are summed over them
rows           ranks that hold parts of the same rows between the parallel linears: tensor (sequence parallelism),
               context, or both; None where this rank has whole rows
"""

from dataclasses import dataclass

from megatron.core import parallel_state
from torch.distributed import ProcessGroup


@dataclass(frozen=True, slots=True)
class Mesh:
    """This rank's groups. Megatron numbers ranks tensor first, then context, data and pipeline."""

    tensor: ProcessGroup
    context: ProcessGroup
    pipeline: ProcessGroup
    data: ProcessGroup
    replicas: ProcessGroup
    rows: ProcessGroup | None
    sequence_parallel: bool

    @classmethod
    def current(cls, sequence_parallel: bool) -> "Mesh":
        """The groups that `setup.initialize_process_groups` made."""
        tensor, context = (
            parallel_state.get_tensor_model_parallel_group(),
            parallel_state.get_context_parallel_group(),
        )
        rows = None
        if sequence_parallel and context.size() > 1:
            rows = parallel_state.get_tensor_and_context_parallel_group()
            assert rows.rank() == tensor.rank() + tensor.size() * context.rank(), "another order of ranks"
        elif sequence_parallel:
            rows = tensor
        elif context.size() > 1:
            rows = context
        return cls(
            tensor=tensor,
            context=context,
            pipeline=parallel_state.get_pipeline_model_parallel_group(),
            data=parallel_state.get_data_parallel_group(),
            replicas=parallel_state.get_data_parallel_group(with_context_parallel=True),
            rows=rows,
            sequence_parallel=sequence_parallel,
        )

    @property
    def num_stages(self) -> int:
        """Pipeline stages."""
        return self.pipeline.size()

    @property
    def stage_index(self) -> int:
        """This rank's stage, from 0."""
        return self.pipeline.rank()

    @property
    def is_first_stage(self) -> bool:
        """Whether this rank embeds tokens."""
        return self.stage_index == 0

    @property
    def is_last_stage(self) -> bool:
        """Whether this rank has the final norm and the head."""
        return self.stage_index == self.num_stages - 1

    @property
    def row_parts(self) -> int:
        """Ranks over which the rows between the parallel linears are split by sequence parallelism."""
        return self.tensor.size() if self.sequence_parallel else 1
