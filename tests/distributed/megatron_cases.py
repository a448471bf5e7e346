"""What the Megatron engine is held against: the cases that one torchrun works through, as data (no torch here)."""

import itertools
from dataclasses import dataclass, replace

PRESETS = {
    "paper": {},
    "released": {"embedding_scale": 0.707, "hidden_scale": 0.3, "normalize_between_loops": True},
}
# name -> (processes, ParallelConfig options)
LAYOUTS = {
    "single": (1, {}),
    "tp2": (2, {"tensor_parallel_size": 2}),
    "tp2_sp": (2, {"tensor_parallel_size": 2, "sequence_parallel": True}),
    "dp2": (2, {}),
    "dp2_distopt": (2, {"distributed_optimizer": True}),
    "dp2_distopt_overlap": (
        2,
        {"distributed_optimizer": True, "overlap_grad_reduce": True, "overlap_param_gather": True},
    ),
    "dp2_overlap": (2, {"overlap_grad_reduce": True}),
    "pp2": (2, {"pipeline_parallel_size": 2}),
    "cp2": (2, {"context_parallel_size": 2}),
    "pp4": (4, {"pipeline_parallel_size": 4}),
    "pp2_tp2_sp": (4, {"pipeline_parallel_size": 2, "tensor_parallel_size": 2, "sequence_parallel": True}),
    "pp2_dp2_distopt_overlap": (
        4,
        {
            "pipeline_parallel_size": 2,
            "distributed_optimizer": True,
            "overlap_grad_reduce": True,
            "overlap_param_gather": True,
        },
    ),
    "cp2_tp2_sp": (4, {"context_parallel_size": 2, "tensor_parallel_size": 2, "sequence_parallel": True}),
    "cp2_pp2": (4, {"context_parallel_size": 2, "pipeline_parallel_size": 2}),
    "cp4": (4, {"context_parallel_size": 4}),  # ranks with neighbours on both sides
    "cp2_dp2_distopt_overlap": (
        4,
        {
            "context_parallel_size": 2,
            "distributed_optimizer": True,
            "overlap_grad_reduce": True,
            "overlap_param_gather": True,
        },
    ),
}

# Layouts that single cases need: with overlap Megatron notices what the mistake does without it.
MORE_LAYOUTS = {"pp2_dp2_distopt": (4, {"pipeline_parallel_size": 2, "distributed_optimizer": True})}


def layout_of(name: str) -> tuple[int, dict[str, object]]:
    """Processes and ParallelConfig options."""
    return (LAYOUTS | MORE_LAYOUTS)[name]


AFTER_A_STEP_TOLERANCE = 2e-3  # nats: AdamW steps amplify rounding; stale weights are off by tenths


@dataclass(frozen=True, kw_only=True)
class Case:
    """One comparison. `kind` names the function in megatron_checks.py."""

    kind: str
    layout: str
    num_loops: int = 2
    packed: bool = True
    preset: str = "released"
    gate_input: str = "hidden"
    tied: bool = False
    loop_kind: str = "parallel"
    recompute: str = "none"
    micro_batches: int = 1  # per data-parallel rank and pipeline stage
    precision: str = "fp32"
    mutation: str = ""
    other_layout: str = ""  # where a saved state is loaded
    clipped: bool = True

    @property
    def world_size(self) -> int:
        """Processes the case needs."""
        return layout_of(self.layout)[0]

    @property
    def stages(self) -> int:
        """Pipeline stages of the case's layout, or the most of its two."""
        both = (self.layout, self.other_layout or self.layout)
        return max(layout_of(layout)[1].get("pipeline_parallel_size", 1) for layout in both)

    @property
    def num_layers(self) -> int:
        """Layers of the model: so many that stages get unequal numbers."""
        return {1: 2, 2: 3, 4: 5}[self.stages]

    @property
    def id(self) -> str:
        """Readable and unique."""
        parts = [self.kind, self.layout, f"R{self.num_loops}", "packed" if self.packed else "whole_rows", self.preset]
        parts += [self.gate_input, "tied" if self.tied else "untied", self.recompute, f"mb{self.micro_batches}"]
        parts += [self.precision, self.loop_kind, self.mutation, self.other_layout, "" if self.clipped else "unclipped"]
        return "-".join(part for part in parts if part and part not in ("parallel", "fp32"))


def full_matrix() -> list[Case]:
    """Every combination of layout, R, documents, preset, gate, tying, recomputation and micro-batches."""
    axes = itertools.product(
        LAYOUTS,
        (1, 2, 3),
        (True, False),
        PRESETS,
        ("hidden", "query"),
        (False, True),
        ("none", "layer", "selective"),
        (1, 2),
    )
    names = ("layout", "num_loops", "packed", "preset", "gate_input", "tied", "recompute", "micro_batches")
    cases = [Case(kind="gradients", **dict(zip(names, values, strict=True))) for values in axes]
    # R = 1 has neither gates nor anything between loops
    return [case for case in cases if case.num_loops > 1 or (case.gate_input == "hidden" and case.preset == "paper")]


def covering_subset() -> list[Case]:
    """All of layout x R x documents, the other axes rotating through them, and both gates under every layout."""
    turn = itertools.count()
    cases = []
    for layout, num_loops, packed in itertools.product(LAYOUTS, (1, 2, 3), (True, False)):
        n = next(turn)
        cases.append(
            Case(
                kind="gradients",
                layout=layout,
                num_loops=num_loops,
                packed=packed,
                preset=("paper", "released")[(n // 2 + n) % 2],
                gate_input=("hidden", "query")[n % 5 == 0],
                tied=n % 3 == 0,
                recompute=("none", "layer", "selective")[n % 4 % 3],
                micro_batches=1 + (n // 3) % 2,
            )
        )
    for layout, gate_input, recompute in itertools.product(LAYOUTS, ("hidden", "query"), ("layer", "selective")):
        tied = recompute == "layer"
        cases.append(
            Case(kind="gradients", layout=layout, gate_input=gate_input, recompute=recompute, tied=tied, num_loops=3)
        )
    return list(dict.fromkeys(cases))


def sequential_cases() -> list[Case]:
    """The comparison model h(r) = f(h(r-1))."""
    common = {"kind": "gradients", "loop_kind": "sequential", "preset": "paper"}
    return [Case(layout=layout, recompute=recompute, **common) for layout in LAYOUTS for recompute in ("none", "layer")]


def training_cases() -> list[Case]:
    """Three optimizer steps, evaluation and telemetry against the plain engine; once in bf16."""
    cases = [Case(kind="training", layout=layout, micro_batches=2, num_loops=r) for layout in LAYOUTS for r in (1, 2)]
    cases += [Case(kind="training", layout=name, gate_input="query", tied=True, preset="paper") for name in LAYOUTS]
    cases += [Case(kind="training", layout=name, clipped=False, packed=False) for name in ("single", "tp2_sp")]
    return cases + [Case(kind="bf16", layout=layout, precision="bf16") for layout in LAYOUTS]


MOVES = (
    ("tp2", "dp2_distopt"),
    ("dp2_distopt", "tp2_sp"),
    ("tp2_sp", "dp2"),
    ("dp2_distopt_overlap", "tp2"),
    ("tp2", "pp2"),
    ("pp2", "dp2_distopt"),
    ("cp2", "pp2"),
    ("pp2", "cp2"),
    ("dp2_distopt", "cp2"),
    ("pp4", "cp2_tp2_sp"),
    ("pp2_dp2_distopt_overlap", "pp4"),
    ("cp2_pp2", "pp2_tp2_sp"),
    ("cp2_tp2_sp", "pp2_dp2_distopt_overlap"),
)


def state_cases() -> list[Case]:
    """Save, load into the same or another layout of as many processes, go on."""
    pairs = [*((name, name) for name in LAYOUTS), *MOVES]
    cases = [Case(kind="state", layout=a, other_layout=b) for a, b in pairs]
    rounded = [*((name, name) for name in LAYOUTS), *MOVES[:4], ("pp2", "cp2"), ("cp2_pp2", "pp2_tp2_sp")]
    cases += [Case(kind="state", layout=a, other_layout=b, precision="bf16") for a, b in rounded]
    for a, b in (("tp2_sp", "dp2_distopt"), ("pp2_dp2_distopt_overlap", "cp2_pp2")):
        cases.append(Case(kind="state", layout=a, other_layout=b, gate_input="query", tied=True))
    return cases


def schedule_cases() -> list[Case]:
    """The order of passes over loops and microbatches, and what is kept meanwhile."""
    return [
        Case(kind="schedule", layout=layout, num_loops=num_loops, micro_batches=micro_batches, packed=False)
        for layout in ("pp2", "pp4")
        for num_loops in (1, 2, 3)
        for micro_batches in (1, 2, 3)
    ]


def memory_cases() -> list[Case]:
    """What each kind of recomputation keeps for the backward pass, and what a checkpoint holds for each R."""
    layouts = ("single", "pp2", "cp2", "pp2_dp2_distopt_overlap")
    return [Case(kind="memory", layout="single"), *(Case(kind="saved_bytes", layout=layout) for layout in layouts)]


# mutation -> layouts in which it must be felt
MUTATIONS = {
    "gate_direction_swapped": ("single", "tp2_sp", "pp2"),
    "shift_dropped": ("single", "tp2_sp"),
    "shift_crosses_documents": ("single", "tp2_sp", "cp2"),
    "window_off_by_one": ("single", "tp2_sp"),
    "shared_kv_detached": ("single", "tp2_sp"),
    "shift_stops_at_the_seam": ("tp2_sp", "cp2", "cp2_tp2_sp"),
    "seam_gradient_dropped": ("tp2_sp", "cp2", "cp2_tp2_sp"),
    "documents_cross_at_the_seam": ("tp2_sp", "cp2", "cp2_tp2_sp"),
    "gate_gradient_of_own_heads_only": ("tp2",),
    "gate_gradient_not_summed_over_rows": ("tp2_sp",),
    "norm_gradient_not_summed_over_rows": ("tp2_sp",),
    "halo_too_short_by_one": ("cp2", "cp4"),
    "halo_gradient_dropped": ("cp2", "cp4"),
    "halos_from_the_wrong_neighbour": ("cp4",),
    "embedding_gradient_dropped": ("pp2",),
    "tied_copies_not_summed": ("pp2",),
    "gathered_gradient_not_summed": ("cp2",),
    "positions_restart_at_the_seam": ("cp2",),
    "shared_kv_gradient_twice": ("pp2",),
    "shared_kv_gradient_not_at_all": ("pp2",),
    "normed_twice_between_loops": ("pp2",),
    "messages_swapped": ("pp2",),
    "finalized_once_per_chunk": ("pp2_dp2_distopt",),
}


def mutation_cases() -> list[Case]:
    """Each mistake must push the comparison far over its tolerance."""
    cases = [
        # pipelines: enough microbatches for passes to overlap
        Case(
            kind="mutation",
            layout=layout,
            mutation=mutation,
            num_loops=3,
            micro_batches=1 + 2 * ("pp" in layout),
            tied="tied" in mutation,
        )
        for mutation, layouts in MUTATIONS.items()
        for layout in layouts
    ]
    shared_step = Case(kind="state_mutation", layout="pp2", other_layout="pp2", mutation="step_tensor_shared")
    return [*cases, shared_step]


def ci_cases() -> list[Case]:
    """What every test run works through."""
    return [
        *covering_subset(),
        *sequential_cases(),
        *training_cases(),
        *state_cases(),
        *mutation_cases(),
        *schedule_cases(),
        *memory_cases(),
    ]


def exhaustive_cases() -> list[Case]:
    """The rest of the full matrix."""
    done = set(covering_subset())
    return [case for case in full_matrix() if case not in done]


def without_mutation(case: Case) -> Case:
    """The same comparison without its mistake."""
    return replace(case, kind="gradients", mutation="")
