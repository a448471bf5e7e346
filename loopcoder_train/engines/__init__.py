"""Engines run the PLT: `plain` on one process, `megatron` on Megatron-core. `engine.py` is what the loop sees."""
