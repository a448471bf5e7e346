"""datatrove's executor for this machine, whose tasks write to their log files and not to the terminal as well."""

import contextlib
import io

from datatrove.executor import LocalPipelineExecutor
from datatrove.utils.stats import PipelineStats


class QuietLocalExecutor(LocalPipelineExecutor):
    """A LocalPipelineExecutor. A module of its own: datatrove is imported by builds only, and tasks find the class."""

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> PipelineStats:
        with contextlib.redirect_stderr(io.StringIO()):
            return super()._run_for_rank(rank, local_rank, node_rank)
