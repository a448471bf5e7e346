"""LoopCoder-Train: distributed pretraining of Parallel Loop Transformers (see docs/architecture.md)."""

__version__ = "0.1.0"
