"""Names, units and order of all numbers of a diagnosis, for the table and the figures."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Entry:
    """`name` as in diagnostics.json; docs/diagnostics.md has the definition."""

    name: str
    title: str
    group: str  # dynamics, attention, output or shares
    decimals: int = 3


CATALOGUE = (
    Entry("step_size", "step size ||h(r) - h(r-1)||", "dynamics"),
    Entry("step_size_normed", "  of normed states", "dynamics"),
    Entry("angular_change", "cosine of successive updates", "dynamics"),
    Entry("effective_rank", "effective rank, normed states", "dynamics"),
    Entry("effective_rank_raw", "  raw states", "dynamics"),
    Entry("fixed_point_gap", "fixed-point gap ||h - f(h)||", "dynamics"),
    Entry("fixed_point_gap_relative", "  relative to ||h||", "dynamics"),
    Entry("fixed_point_gap_loop", "  of the whole loop map", "dynamics"),
    Entry("offset_cost", "offset cost Omega", "dynamics"),
    Entry("offset_cost_relative", "  relative to ||h||", "dynamics"),
    Entry("offset_cost_normed", "  of normed states", "dynamics"),
    Entry("attention_entropy", "attention entropy, nats", "attention"),
    Entry("attention_entropy_global", "  global branch", "attention"),
    Entry("attention_entropy_local", "  local branch", "attention"),
    Entry("attention_kl", "KL(A(r) || A(r-1)), nats", "attention"),
    Entry("attention_kl_global", "  global branch", "attention"),
    Entry("attention_kl_local", "  local branch", "attention"),
    Entry("head_rank", "effective rank of heads", "attention"),
    Entry("head_rank_global", "  global branch", "attention"),
    Entry("head_rank_local", "  local branch", "attention"),
    Entry("head_cosine", "cosine between heads", "attention"),
    Entry("head_cosine_global", "  global branch", "attention"),
    Entry("head_cosine_local", "  local branch", "attention"),
    Entry("gate_mean", "mean gate (1 = global)", "attention"),
    Entry("loss", "loss, nats", "output", 4),
    Entry("output_entropy", "entropy of p(r), nats", "output"),
    Entry("true_token_rank", "rank of the true token", "output", 1),
    Entry("output_kl", "output shift KL(p(r) || p(r-1)), nats", "output", 4),
    Entry("output_kl_share", "share of output shift", "shares"),
    Entry("attention_kl_share", "share of attention change", "shares"),
    Entry("peak_loop_share", "tokens whose shift peaks here", "shares"),
)
