"""`loopcoder diagnose`: every lens on held-out documents of a checkpoint, each number with its confidence interval.

held-out rows -> samples (documents inside rows) -> one forward pass per row, read by three observers (dynamics,
attention, output) and the fixed-point visits -> sums and counts per sample -> mean and 95% interval -> table, JSON,
figures. docs/diagnostics.md says what is measured, what was decided, and how much memory it takes.
"""
