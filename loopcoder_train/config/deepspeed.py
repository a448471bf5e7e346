"""How engine=deepspeed lays the plain model over processes. Read by that engine only; never changes the result."""

from dataclasses import dataclass

from loopcoder_train.config.errors import require, require_positive


@dataclass(kw_only=True, slots=True)
class DeepSpeedConfig:
    """ZeRO over the data-parallel ranks. Sizes in elements, as DeepSpeed counts them."""

    zero_stage: int = 1  # what is split: 1 optimizer state, 2 also gradients, 3 also weights
    offload_optimizer: bool = False  # fp32 weights and moments in CPU memory, updated there
    offload_parameters: bool = False  # each rank's part of the weights in CPU memory; zero_stage=3
    reduce_bucket_elements: int = 50_000_000  # gradients that are summed over ranks at a time
    gather_bucket_elements: int = 50_000_000  # weights gathered at a time; zero_stage=3: fetched ahead of their use
    max_live_elements: int = 1_000_000_000  # zero_stage=3: gathered weights that may wait for their next use
    persistent_elements: int = 100_000  # zero_stage=3: parameters of no more than this stay whole on every rank

    def __post_init__(self) -> None:
        require(self.zero_stage in (1, 2, 3), "deepspeed.zero_stage", self.zero_stage, "must be 1, 2 or 3")
        require(
            not self.offload_parameters or self.zero_stage == 3,
            "deepspeed.offload_parameters",
            self.offload_parameters,
            f"needs deepspeed.zero_stage=3, which splits the weights, not {self.zero_stage}",
        )
        require_positive(
            deepspeed__reduce_bucket_elements=self.reduce_bucket_elements,
            deepspeed__gather_bucket_elements=self.gather_bucket_elements,
        )
        require(
            self.gather_bucket_elements % 2 == 0,
            "deepspeed.gather_bucket_elements",
            self.gather_bucket_elements,
            "must be even",
            f"try {self.gather_bucket_elements + 1}",
        )
        for name in ("max_live_elements", "persistent_elements"):
            value = getattr(self, name)
            require(value >= 0, f"deepspeed.{name}", value, "must be 0 or more")
