"""Warnings of Megatron-core 0.16 that say nothing about a run of this project; every other warning passes."""

import warnings

# message (regular expression at its start) -> category
_ALWAYS = {
    # said once per module that looks for NVIDIA's optional fused kernels; torch's own are used on purpose
    r"(Transformer Engine and )?Apex (is|are) not installed": UserWarning,
    # Megatron 0.16 calls collectives by their older names
    r"`torch\.distributed\.(all_gather_into_tensor|reduce_scatter_tensor)` is deprecated": FutureWarning,
    # the fp32 distributed optimizer clears .grad of its views of the weights, where nobody reads it
    r"The \.grad attribute of a Tensor that is not a leaf Tensor is being accessed": UserWarning,
}
_ON_CPU = {
    # a hint about the order of CUDA queues
    r"When using (sequence parallelism|async grad allreduce) it is recommended": UserWarning,
}


def quiet_megatron(*, on_cpu: bool) -> None:
    """Leave these warnings out from now on."""
    for message, category in (_ALWAYS | (_ON_CPU if on_cpu else {})).items():
        warnings.filterwarnings("ignore", message=message, category=category)
