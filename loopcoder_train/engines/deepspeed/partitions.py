"""Where ZeRO has put what: the parts of parameters that this rank updates, and what stands between gradient and step.

    stages 1, 2   the parameters of a group lie one after the other in one flat tensor, cut into equal parts by rank
    stage 3       every parameter is cut by itself; a group's flat fp32 tensor holds this rank's part of each

DeepSpeed's step computes the norm and decides about the update in one go. `gradient_norm` and `discard` let somebody
else decide in between; they touch what its own step touches when it finds an overflow.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

from deepspeed.runtime.utils import combine_grad_norm_groups
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import INITIAL_MICRO_STEP_ID, DeepSpeedZeroOptimizer
from torch import Tensor, distributed, nn

from loopcoder_train.model.state import TensorShard, flat_range_boxes, whole


@dataclass(frozen=True, slots=True)
class Piece:
    """Elements [start, stop) of the flattened parameter `name`; they begin at `offset` in the flat tensor `main`.

    `main`: fp32, what AdamW updates; its moments are laid out alike.
    """

    name: str
    shape: tuple[int, ...]
    start: int
    stop: int
    main: Tensor
    offset: int

    def shards(self, prefix: str, flat: Tensor) -> Iterator[TensorShard]:
        """Boxes of `prefix + name` in `flat`, which is `main` or laid out like it; owned, as no rank shares them."""
        values = flat.detach()[self.offset : self.offset + self.stop - self.start]
        yield from flat_boxes(prefix + self.name, self.shape, self.start, self.stop, values, owner=True)


def flat_boxes(
    name: str, shape: tuple[int, ...], start: int, stop: int, values: Tensor, *, owner: bool
) -> Iterator[TensorShard]:
    """Elements [start, stop) of a flattened tensor, which are `values`, as boxes."""
    for offsets, lengths, low, high in flat_range_boxes(shape, start, stop):
        yield TensorShard(name, shape, offsets, values[low - start : high - start].view(lengths), owner)


class Partitions(ABC):
    """One rank's view of a ZeRO optimizer. `names`: the released name of every parameter."""

    @abstractmethod
    def pieces(self) -> Iterator[Piece]:
        """What this rank updates; the ranks' pieces cover every parameter once."""

    @abstractmethod
    def live_shards(self, prefix: str) -> Iterator[TensorShard]:
        """The weights that forward passes read and that loading must fill. Stage 3 lets go of gathered ones first."""

    @abstractmethod
    def whole_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Weights that every rank holds whole at all times."""

    @abstractmethod
    def gradient_norm(self) -> float:
        """L2 norm of the summed gradients before clipping; inf where one is not finite. Collective."""

    @abstractmethod
    def discard(self) -> None:
        """Forget the gradients, as if the passes had not been made."""


class FlatPartitions(Partitions):
    """Stages 1 and 2."""

    def __init__(self, optimizer: DeepSpeedZeroOptimizer, names: dict[nn.Parameter, str]):
        self._zero, self._names = optimizer, names

    def pieces(self) -> Iterator[Piece]:
        """The parameters in this rank's range of each group, the first and last of them perhaps in part."""
        zero, rank = self._zero, distributed.get_rank()
        for group, main in enumerate(zero.single_partition_of_fp32_groups):
            first = rank * zero.partition_size[group]
            for parameter, begin in zip(
                zero.round_robin_bit16_groups[group], zero.round_robin_bit16_offsets[group], strict=True
            ):
                low, high = max(first, begin), min(first + len(main), begin + parameter.numel())
                if low < high:
                    shape = tuple(parameter.shape)
                    yield Piece(self._names[parameter], shape, low - begin, high - begin, main, low - first)

    def live_shards(self, prefix: str) -> Iterator[TensorShard]:
        """Every weight, whole."""
        return (whole(prefix + name, weight, owner=False) for name, weight in self.whole_weights())

    def whole_weights(self) -> Iterator[tuple[str, Tensor]]:
        """All of them."""
        return ((name, parameter.data) for parameter, name in self._names.items())

    def gradient_norm(self) -> float:
        """See :meth:`Partitions.gradient_norm`."""
        return float(self._zero.scaled_global_norm())

    def discard(self) -> None:
        """See :meth:`Partitions.discard`."""
        zero = self._zero
        zero.micro_step_id = INITIAL_MICRO_STEP_ID
        zero.zero_grad(set_to_none=True)
        zero._release_preflattened_grad_buffers()
        for group in zero.averaged_gradients:  # under offload DeepSpeed's overflow leaves bf16's fp32 sums behind
            zero.averaged_gradients[group] = zero.all_grad_tensors[group] = None
        if zero.cpu_offload:
            zero._offload_accumulated_param_ids = set()
            zero.reset_cpu_buffers()


class SplitPartitions(Partitions):
    """Stage 3."""

    def __init__(self, optimizer: DeepSpeedZeroOptimizer_Stage3, names: dict[nn.Parameter, str]):
        self._zero, self._names = optimizer, names

    def pieces(self) -> Iterator[Piece]:
        """This rank's part of every parameter that is large enough to reach it."""
        zero = self._zero
        for group, parameters in enumerate(zero.fp16_groups):
            for parameter in parameters:
                start, stop = _part(parameter)
                _, offset, _ = zero.grad_position[zero.get_param_id(parameter)]
                if start < stop:
                    shape = tuple(parameter.ds_shape)
                    yield Piece(
                        self._names[parameter], shape, start, stop, zero.fp32_partitioned_groups_flat[group], offset
                    )

    def live_shards(self, prefix: str) -> Iterator[TensorShard]:
        """This rank's part of every weight; gathered ones are let go, so that no stale copy stays."""
        self._zero.empty_partition_cache()
        for parameter, name in self._names.items():
            start, stop = _part(parameter)
            values = parameter.ds_tensor.data[: stop - start]
            yield from flat_boxes(prefix + name, tuple(parameter.ds_shape), start, stop, values, owner=False)

    def whole_weights(self) -> Iterator[tuple[str, Tensor]]:
        """None: what is whole for a while was gathered from its only holders."""
        return iter(())

    def gradient_norm(self) -> float:
        """See :meth:`Partitions.gradient_norm`."""
        return float(combine_grad_norm_groups(self._zero._get_norm_groups()))

    def discard(self) -> None:
        """See :meth:`Partitions.discard`."""
        zero = self._zero
        zero._pre_step()
        zero.empty_partition_cache()
        zero._overflow_clean_up(zero.loss_scale)


def _part(parameter: nn.Parameter) -> tuple[int, int]:
    """This rank's elements [start, stop) of a flattened parameter; the last ranks' parts may be short or empty."""
    length, total = parameter.partition_numel(), parameter.ds_numel
    start = min(distributed.get_rank() * length, total)
    return start, min(start + length, total)


def partitions_of(optimizer: object, names: dict[nn.Parameter, str]) -> Partitions:
    """The view that fits the stage."""
    if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
        return SplitPartitions(optimizer, names)
    assert isinstance(optimizer, DeepSpeedZeroOptimizer), type(optimizer)
    return FlatPartitions(optimizer, names)
