"""Values that LoopCoder-v2 (arXiv 2606.18023) reports, to read ours beside. A 7B, R = 4, 500 held-out samples."""

DIAGNOSTICS = {
    "step_size": {2: 846.0, 3: 464.0, 4: 1014.0},
    "output_kl": {2: 1.75, 3: 1.32, 4: 1.58},
    "effective_rank": {2: 174.6, 3: 172.5, 4: 158.2},
    "angular_change": {2: -0.72, 3: -0.46, 4: 0.04},
}
"""Lens -> loop -> value."""

SCORES = {"SWE-bench Verified": (43.0, 64.4, 27.6, 22.4), "mean of ten benchmarks": (38.0, 46.5, 36.9, 34.3)}
"""Benchmark -> score of R = 1..4, after tuning."""
