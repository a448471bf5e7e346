"""Lets ZeRO stage 3 release weights after every backward visit of a module, not after its first alone.

DeepSpeed counts, per module, the inputs whose gradients are still to come, and releases at zero. A visit's forward pass
starts the count anew, so when R loops have visited a layer it stands at one visit's inputs: the first backward visit
brings it to zero, the others below. From R = 2 on every rank then held the whole model at the end of a backward pass
(DeepSpeed 0.19.8; `test_stage_3_gathers_little_at_a_time`). Visits of a module have equally many such inputs here, and
their backward passes do not overlap.
"""

from deepspeed.runtime.zero.parameter_offload import DeepSpeedZeRoOffload
from torch import nn


def release_after_every_visit(offload: DeepSpeedZeRoOffload) -> None:
    """Start each module's count anew before each of its backward visits."""
    fetch, inputs_of_a_visit = offload.pre_sub_module_backward_function, {}

    def begin_visit(module: nn.Module) -> None:
        if module.ds_grads_remaining > 0:
            inputs_of_a_visit[module] = module.ds_grads_remaining
        else:
            module.ds_grads_remaining = inputs_of_a_visit.get(module, 0)
        fetch(module)

    offload.pre_sub_module_backward_function = begin_visit
