"""DeepSpeed's objects, made from a run's configuration.

PLT without values (stages 1 and 2: whole; stage 3: every module is split over the ranks as soon as it is made)
-> torch AdamW, decayed and other parameters -> deepspeed.initialize, which puts ZeRO between the two
"""

from functools import partial
from typing import Any

import deepspeed
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from loopcoder_train.config import ActivationCheckpointing, DeepSpeedConfig, Precision, RunConfig
from loopcoder_train.engines.deepspeed.revisits import release_after_every_visit
from loopcoder_train.model import PLT
from loopcoder_train.model.names import is_decayed

DTYPES = {Precision.fp32: torch.float32, Precision.bf16: torch.bfloat16}


class InsideForward(nn.Module):
    """Runs a function of the model as this module's forward pass.

    ZeRO stage 3 fetches weights by hooks on modules, and those that are read outside of their own module (the tied
    head) only while the outermost module's forward pass runs.
    """

    def __init__(self, model: PLT):
        super().__init__()
        self.model = model

    def forward(self, function, *arguments: object) -> object:
        """`function(model, *arguments)`."""
        return function(self.model, *arguments)


def initialize(config: RunConfig, device: torch.device) -> deepspeed.DeepSpeedEngine:
    """DeepSpeed's engine over an :class:`InsideForward`; weights have no values yet. Collective."""
    options = deepspeed_options(config, device)
    model = build_model(config, options, device)
    if config.training.activation_checkpointing is ActivationCheckpointing.layer:
        recompute_layers(model)
    module = InsideForward(model)
    engine, *_ = deepspeed.initialize(
        model=module, optimizer=build_optimizer(config, model), config=options, dist_init_required=False
    )
    if config.deepspeed.zero_stage == 3:
        release_after_every_visit(engine.optimizer.parameter_offload)
    return engine


def deepspeed_options(config: RunConfig, device: torch.device) -> dict[str, Any]:
    """DeepSpeed's configuration. One step of its optimizer is one of ours, whatever the number of micro-batches."""
    return {
        "train_micro_batch_size_per_gpu": config.training.micro_batch_size,
        "gradient_accumulation_steps": 1,  # the engine says which micro-batch is the last
        "gradient_clipping": config.optimizer.clip_grad_norm,
        "bf16": {"enabled": config.training.precision is Precision.bf16},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "zero_optimization": _zero_options(config.deepspeed, config.parallel.overlap_grad_reduce, device),
        "zero_force_ds_cpu_optimizer": False,  # torch's fused AdamW needs no compiler
    }


def _zero_options(config: DeepSpeedConfig, overlap: bool, device: torch.device) -> dict[str, Any]:
    on_cpu = {"device": "cpu", "pin_memory": device.type == "cuda"}
    options: dict[str, Any] = {
        "stage": config.zero_stage,
        "overlap_comm": overlap,
        "reduce_bucket_size": config.reduce_bucket_elements,
        "allgather_bucket_size": config.gather_bucket_elements,
        "stage3_prefetch_bucket_size": config.gather_bucket_elements,
        "stage3_max_live_parameters": config.max_live_elements,
        "stage3_max_reuse_distance": config.max_live_elements,
        "stage3_param_persistence_threshold": config.persistent_elements,
    }
    if config.offload_optimizer:
        options["offload_optimizer"] = on_cpu
    if config.offload_parameters:
        options["offload_param"] = on_cpu
    return options


def build_model(config: RunConfig, options: dict[str, Any], device: torch.device) -> PLT:
    """The plain model in the run's precision without values: nothing larger than a module is whole under stage 3."""
    dtype = DTYPES[config.training.precision]
    if config.deepspeed.zero_stage < 3:
        with torch.device("meta"):
            model = PLT(config.model, config.kernels)
        return model.to(dtype).to_empty(device=device)
    with deepspeed.zero.Init(config_dict_or_path=options):  # given a dtype, it makes bf16 of fp32 on CPUs (0.19.8)
        model = PLT(config.model, config.kernels)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    return model


def build_optimizer(config: RunConfig, model: PLT) -> torch.optim.AdamW:
    """AdamW for ZeRO to feed. Fused: one pass over the flat tensors, on CUDA and on CPUs."""
    options = config.optimizer
    groups = [
        {
            "params": [parameter for name, parameter in model.named_parameters() if is_decayed(name) is decayed],
            "weight_decay": options.weight_decay if decayed else 0.0,
        }
        for decayed in (True, False)
    ]
    return torch.optim.AdamW(
        groups, lr=options.peak_lr, betas=(options.beta1, options.beta2), eps=options.eps, fused=True
    )


def recompute_layers(model: PLT) -> None:
    """Keep only each layer's input (and loop 1's keys and values) for the backward pass; the rest comes again."""
    for layer in model.model.layers:
        layer.forward = partial(_recomputed, layer.forward)


def _recomputed(forward, x: Tensor, *arguments: object) -> object:
    return checkpoint(forward, x, *arguments, use_reentrant=False, preserve_rng_state=False)
