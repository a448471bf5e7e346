"""When gradients may be reduced while loops share weights.

Megatron's interleaved schedule lets DDP reduce during the last microbatch's backward pass of EVERY chunk, because its
chunks own different weights. Ours share them: a gradient is whole only in the last backward pass of all, loop 1's.
"""

from collections.abc import Iterable

from megatron.core.distributed import DistributedDataParallel
from torch import nn


class LoopGradientSync:
    """Stands in for `DDP.no_sync`: a context that keeps gradients back, re-entered by the schedule after every chunk.

    Leaving it lets go of them only in loop 1's last backward pass (and at the end of the step). DDP reduces a bucket
    when each of its parameters has got a gradient in that pass, so those that loop 1 does not use (`unused_in_loop_1`:
    gates, head) are reported when it begins.
    """

    def __init__(self, ddp: DistributedDataParallel, num_loops: int, unused_in_loop_1: Iterable[nn.Parameter]):
        self._ddp, self._num_loops, self._early = ddp, num_loops, list(unused_in_loop_1)
        self._exits = 0
        self._held = None

    def begin(self) -> None:
        """A new step."""
        self._exits = 0

    def __call__(self) -> "LoopGradientSync":
        return self

    def __enter__(self) -> None:
        if self._held is None:
            self._held = self._ddp.no_sync()
            self._held.__enter__()

    def __exit__(self, *error: object) -> None:
        self._exits += 1
        if self._exits < self._num_loops:  # the last microbatch of a later loop
            return
        self._held.__exit__(None, None, None)
        self._held = None
        if self._exits == self._num_loops and self._ddp.ddp_config.overlap_grad_reduce:
            for parameter in self._early:
                self._ddp.param_to_bucket_group[parameter].register_grad_ready(parameter)
