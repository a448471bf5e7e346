"""AdamW by Megatron's optimizers, and its state under layout-free names.

Three of Megatron's optimizers can be underneath; all end in torch AdamW over fp32 main tensors (FusedAdam in AdamW mode
where TE or Apex is installed, which has not been run by this project):

    FP32Optimizer                      main tensor = the live weight
    Float16OptimizerWithFloat16Params  main tensor = fp32 copy of the live bf16 weight
    DistributedOptimizer               main tensor = a range of the flattened weight (fp32: a view, bf16: a copy); the
                                       data-parallel ranks' ranges cover each weight once

Main tensors and moments are saved and loaded in place, box by box. Megatron's own checkpoint format is not used; with
torch's AdamW it loses or shares the `step` counters.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import (
    DistributedOptimizer,
    Float16OptimizerWithFloat16Params,
    MegatronOptimizer,
    ParamGroupOverride,
    ParamKey,
    get_megatron_optimizer,
)
from megatron.core.optimizer.optimizer_config import ParamWithNamePredicate
from torch import Tensor, nn

from loopcoder_train.config import RunConfig
from loopcoder_train.engines.megatron.mesh import Mesh
from loopcoder_train.engines.megatron.parameters import ParameterLayout
from loopcoder_train.engines.megatron.setup import optimizer_config
from loopcoder_train.model.state import FIRST_MOMENT_PREFIX, MODEL_PREFIX, SECOND_MOMENT_PREFIX, TensorShard

Layout = dict[nn.Parameter, ParameterLayout]
K = TypeVar("K")


def build_optimizer(config: RunConfig, ddp: DistributedDataParallel, layout: Layout) -> MegatronOptimizer:
    """AdamW over the parameters of `ddp`; biases and norm weights in a group without decay.

    Megatron's groups carry a multiplier (`wd_mult`) that only its own scheduler applies, so it is applied here.
    """
    not_decayed = ParamKey(
        with_name_predicate=ParamWithNamePredicate(
            name="not_decayed", fn=lambda parameter, _: not layout[parameter].decayed
        )
    )
    overrides = {not_decayed: ParamGroupOverride(wd_mult=0.0)}
    optimizer = get_megatron_optimizer(
        optimizer_config(config), [ddp], config_overrides=overrides, use_gloo_process_groups=False
    )
    for group in optimizer.param_groups:
        group["weight_decay"] = config.optimizer.weight_decay * group["wd_mult"]
    return optimizer


@dataclass(slots=True)
class MainTensor:
    """What the inner AdamW updates: elements [start, start + numel) of a flattened parameter, in fp32."""

    parameter: nn.Parameter
    tensor: Tensor
    start: int = 0


class OptimizerState:
    """The weights and AdamW state of one rank as shards.

    Every element is owned, hence saved, once. Ranks that hold the same share the work: the distributed optimizer's
    ranges lie with one replica each anyway, and otherwise the replicas take whole parameters in turn.
    """

    def __init__(self, optimizer: MegatronOptimizer, layout: Layout, mesh: Mesh):
        (self._megatron,) = optimizer.chained_optimizers  # dense parameters only: one optimizer
        self._adam: torch.optim.Optimizer = self._megatron.optimizer
        self._layout, self._replica, self._tensor_rank = layout, mesh.replicas.rank(), mesh.tensor.rank()
        sizes = {parameter: 0 if place.is_copy else parameter.numel() for parameter, place in layout.items()}
        self._saved_by = evenly(sizes, mesh.replicas.size())
        self._sharded = isinstance(self._megatron, DistributedOptimizer)
        self._mains = list(self._main_tensors())

    def weight_shards(self, *, loading: bool) -> Iterator[TensorShard]:
        """fp32 weights; for loading also the live weights where they are other tensors or other ranks' ranges."""
        for main in self._mains:
            yield from self._shards(MODEL_PREFIX, main, main.tensor)
        if loading:
            for parameter, layout in self._layout.items():
                yield from layout.shards(MODEL_PREFIX, parameter.data.view(-1), 0, owner=False)

    def moment_shards(self) -> Iterator[TensorShard]:
        """Both Adam moments, made if they are not there."""
        for main in self._mains:
            state = self._adam_state(main.tensor)
            yield from self._shards(FIRST_MOMENT_PREFIX, main, state["exp_avg"])
            yield from self._shards(SECOND_MOMENT_PREFIX, main, state["exp_avg_sq"])

    def gradient_shards(self) -> Iterator[TensorShard]:
        """The fp32 gradients that the next step will use, before clipping."""
        for main in self._mains:
            gradient = main.parameter.main_grad.view(-1)[main.start : main.start + main.tensor.numel()]
            yield from self._shards("", main, gradient)

    @property
    def step(self) -> int:
        """Optimizer steps taken, as Adam's bias correction counts them. A rank without tensors of its own counts 0."""
        if self._steps_per_tensor:
            return max((int(self._adam_state(main.tensor)["step"]) for main in self._mains), default=0)
        return max(int(group.get("step", 0)) for group in self._adam.param_groups)

    @step.setter
    def step(self, step: int) -> None:
        for main in self._mains:
            state = self._adam_state(main.tensor)
            if self._steps_per_tensor:  # each its own tensor: AdamW counts in place
                state["step"] = torch.tensor(float(step))
        if not self._steps_per_tensor:
            for group in self._adam.param_groups:
                group["step"] = step

    @property
    def _steps_per_tensor(self) -> bool:
        """torch counts steps per tensor; TE's and Apex's FusedAdam per group."""
        return isinstance(self._adam, torch.optim.AdamW)

    def _adam_state(self, tensor: Tensor) -> dict[str, Tensor]:
        """The tensor's optimizer state, made as AdamW would at its first step."""
        state = self._adam.state[tensor]
        if not state:
            if self._steps_per_tensor:
                state["step"] = torch.tensor(0.0)
            state["exp_avg"] = torch.zeros_like(tensor)
            state["exp_avg_sq"] = torch.zeros_like(tensor)
        return state

    def _shards(self, prefix: str, main: MainTensor, values: Tensor) -> Iterator[TensorShard]:
        layout = self._layout[main.parameter]
        among_replicas = self._sharded or self._replica == self._saved_by[main.parameter]
        among_tensor_ranks = not layout.whole_on_every_rank or self._tensor_rank == 0
        owner = among_replicas and among_tensor_ranks and not layout.is_copy
        yield from layout.shards(prefix, values.detach().view(-1), main.start, owner)

    def _main_tensors(self) -> Iterator[MainTensor]:
        """In the stage's order of parameters, whatever the optimizer's groups."""
        ranges = self._owned_ranges() if self._sharded else {}
        for parameter in self._layout:
            if self._sharded:
                if parameter in ranges:
                    yield ranges[parameter]
            elif isinstance(self._megatron, Float16OptimizerWithFloat16Params):
                yield MainTensor(parameter, parameter.main_param)
            else:
                yield MainTensor(parameter, parameter)

    def _owned_ranges(self) -> dict[nn.Parameter, MainTensor]:
        """The distributed optimizer's flat ranges of this data-parallel rank."""
        megatron, owned = self._megatron, {}
        for models, mains in (
            (megatron.model_fp32_groups, megatron.shard_fp32_groups),
            (megatron.model_float16_groups, megatron.shard_fp32_from_float16_groups),
        ):
            for model_group, main_group in zip(models, mains, strict=True):
                for parameter, tensor in zip(model_group, main_group, strict=True):
                    start = megatron._get_model_param_range_map(parameter)["param"].start
                    owned[parameter] = MainTensor(parameter, tensor, start)
        return owned


def evenly(sizes: dict[K, int], places: int) -> dict[K, int]:
    """A place in [0, places) for every key, in order, each time the one that has got least so far."""
    loads, chosen = [0] * places, {}
    for key, size in sizes.items():
        chosen[key] = loads.index(min(loads))
        loads[chosen[key]] += size
    return chosen
