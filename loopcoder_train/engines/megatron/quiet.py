"""Warnings of Megatron-core 0.16 that say nothing about a run of this project; every other warning passes."""

import warnings

# message (regular expression at its start) -> why it can be left out
_LEFT_OUT = {
    # said once per module that looks for NVIDIA's optional fused kernels; torch's own are used on purpose
    r"(Transformer Engine and )?Apex (is|are) not installed": UserWarning,
    # a hint about the order of CUDA queues, given on CPUs and on Blackwell, where it does not matter, too
    r"When using (sequence parallelism|async grad allreduce) it is recommended": UserWarning,
    # Megatron 0.16 calls collectives by the names that torch 2.11 still has
    r"`torch\.distributed\.(all_gather_into_tensor|reduce_scatter_tensor)` is deprecated": FutureWarning,
    # the fp32 distributed optimizer clears .grad of its views of the weights, where nobody reads it
    r"The \.grad attribute of a Tensor that is not a leaf Tensor is being accessed": UserWarning,
}


def quiet_megatron() -> None:
    """Leave these warnings out from now on."""
    for message, category in _LEFT_OUT.items():
        warnings.filterwarnings("ignore", message=message, category=category)
