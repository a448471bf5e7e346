"""What the DeepSpeed engine is held against: the cases that one torchrun works through, as data (no torch here)."""

import itertools
from dataclasses import dataclass, replace

# (sequences of a micro-batch, micro-batches, data-parallel ranks): the same four sequences
SPLITS = ((4, 1, 1), (1, 4, 1), (2, 1, 2), (1, 2, 2))
OFFLOADS = ("none", "optimizer", "both")


@dataclass(frozen=True, kw_only=True)
class ZeroCase:
    """One comparison. `kind` names the function in deepspeed_checks.py."""

    kind: str
    stage: int
    split: tuple[int, int, int]
    num_loops: int = 2
    offload: str = "none"
    recompute: str = "none"
    gate_input: str = "hidden"
    tied: bool = False
    packed: bool = True
    overlap: bool = False
    precision: str = "fp32"
    other_stage: int = 0  # where a saved state is loaded
    start: str = "tp2"  # Megatron's layout at the start of a journey (megatron_cases.py)
    mutation: str = ""

    @property
    def world_size(self) -> int:
        """Processes the case needs."""
        return self.split[2]

    @property
    def id(self) -> str:
        """Readable and unique."""
        parts = [self.kind, f"zero{self.stage}", "x".join(map(str, self.split)), f"R{self.num_loops}", self.precision]
        parts += ["" if self.offload == "none" else f"offload_{self.offload}", self.gate_input, self.recompute]
        parts += ["tied" * self.tied, "whole_rows" * (not self.packed), "overlap" * self.overlap, self.mutation]
        parts += [f"to_zero{self.other_stage}" if self.other_stage else "", self.start * (self.kind == "journey")]
        return "-".join(part for part in parts if part and part not in ("fp32", "hidden", "none"))


def parity_cases() -> list[ZeroCase]:
    """All of stage x split x R, the other axes rotating through them, and each kind of offload in every stage."""
    turn, cases = itertools.count(), []
    for stage, split, num_loops in itertools.product((1, 2, 3), SPLITS, (1, 2, 3)):
        n = next(turn)
        offload = OFFLOADS[n % 3]
        cases.append(
            ZeroCase(
                kind="parity",
                stage=stage,
                split=split,
                num_loops=num_loops,
                offload="optimizer" if offload == "both" and stage < 3 else offload,
                recompute=("none", "layer")[n // 3 % 2],
                gate_input=("hidden", "query")[n % 5 == 1 and num_loops > 1],
                tied=n % 4 == 0,
                packed=n % 7 != 0,
                overlap=n % 2 == 1,
            )
        )
    return cases


def bf16_cases() -> list[ZeroCase]:
    """fp32 sums over micro-batches and ranks, fp32 masters."""
    splits = ((1, 4, 1), (1, 2, 2))
    return [
        ZeroCase(kind="bf16", stage=stage, split=split, precision="bf16", offload=offload, num_loops=_bf16_loops(stage))
        for stage, split, offload in itertools.product((1, 2, 3), splits, ("none", "optimizer"))
    ]


def _bf16_loops(stage: int) -> int:
    """Stage 3's hooks let the loops' gradients of E come together in another order, and bf16 rounds each sum."""
    return 1 if stage == 3 else 2


def state_cases() -> list[ZeroCase]:
    """Save, load into the same or another stage of as many processes, go on."""
    cases = []
    for stage, other, precision in itertools.product((1, 2, 3), (1, 2, 3), ("fp32", "bf16")):
        if precision == "bf16" and abs(stage - other) == 1:
            continue
        split = SPLITS[2] if stage != other or precision == "bf16" else SPLITS[3]
        offload = "optimizer" if (stage + other) % 3 == 0 else "none"
        common = {"kind": "state", "stage": stage, "other_stage": other, "precision": precision}
        cases.append(ZeroCase(split=split, offload=offload, **common))
    return [*cases, ZeroCase(kind="state", stage=3, other_stage=3, split=(4, 1, 1), offload="both")]


def journey_cases() -> list[ZeroCase]:
    """Megatron -> checkpoint on disk -> DeepSpeed -> checkpoint -> the plain engine."""
    starts = ((1, "tp2"), (2, "tp2_sp"), (3, "tp2"), (1, "cp2"), (3, "pp2"))
    cases = [ZeroCase(kind="journey", stage=stage, split=(1, 2, 2), start=start) for stage, start in starts]
    return [*cases, ZeroCase(kind="journey", stage=3, split=(2, 1, 2), offload="both", precision="bf16")]


def infinite_cases() -> list[ZeroCase]:
    """A micro-batch whose loss is infinite, in every stage, precision and split that accumulates."""
    turn, cases = itertools.count(), []
    for stage, precision, split in itertools.product((1, 2, 3), ("fp32", "bf16"), ((1, 4, 1), (1, 2, 2))):
        n = next(turn)
        both = stage == 3 and precision == "bf16"
        offload = ("none", "both" if both else "optimizer")[(n + n // 2) % 2]  # each with either precision and split
        cases.append(ZeroCase(kind="infinite", stage=stage, precision=precision, split=split, offload=offload))
    return cases


def memory_cases() -> list[ZeroCase]:
    """The share of the model that stage 3 has gathered at a time."""
    return [
        ZeroCase(kind="memory", stage=3, split=(2, 1, 2), num_loops=r, recompute=recompute)
        for r, recompute in ((1, "none"), (3, "none"), (3, "layer"))
    ]


# mutation -> (kind of comparison, stages, split) in which it must be felt
MUTATIONS = {
    "mean_over_ranks": ("parity", (1, 2, 3), (2, 1, 2)),
    "tokens_of_one_rank": ("parity", (1, 2, 3), (1, 2, 2)),
    "every_micro_batch_is_the_last": ("parity", (1,), (1, 4, 1)),
    "refused_gradients_stay": ("parity", (3,), (1, 4, 1)),
    "refused_sums_stay": ("bf16", (1, 2, 3), (1, 2, 2)),
    "biases_and_norms_decayed": ("parity", (1, 3), (4, 1, 1)),
    "not_clipped": ("parity", (1, 3), (4, 1, 1)),
    "one_learning_rate": ("parity", (1, 3), (4, 1, 1)),
    "infinite_sums_stay": ("infinite", (1, 2, 3), (1, 2, 2)),
    "sums_in_bf16": ("bf16", (1, 2, 3), (1, 2, 2)),
    "pieces_off_by_one": ("parity", (1, 2, 3), (2, 1, 2)),
    "live_weights_not_loaded": ("state", (1, 3), (2, 1, 2)),
    "optimizer_step_not_loaded": ("state", (1, 3), (2, 1, 2)),
    "weights_not_released": ("memory", (3,), (2, 1, 2)),
}


def mutation_cases() -> list[ZeroCase]:
    """Each mistake must push the comparison far over its tolerance."""
    return [
        ZeroCase(
            kind=kind,
            stage=stage,
            split=split,
            mutation=mutation,
            other_stage=stage * (kind == "state"),
            precision="bf16" if kind in ("bf16", "infinite") else "fp32",
            num_loops=_bf16_loops(stage) if kind == "bf16" else 2,
        )
        for mutation, (kind, stages, split) in MUTATIONS.items()
        for stage in stages
    ]


def all_cases() -> list[ZeroCase]:
    """What every test run works through."""
    right = [*parity_cases(), *bf16_cases(), *state_cases(), *journey_cases(), *infinite_cases()]
    right += memory_cases()
    return [*right, *mutation_cases()]


def without_mutation(case: ZeroCase) -> ZeroCase:
    """The same comparison without its mistake."""
    return replace(case, mutation="")
