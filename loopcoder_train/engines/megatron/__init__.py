"""The PLT on Megatron-core, laid over processes in any way. The only importer of megatron.

    setup.py            process groups and Megatron's configurations; settings that are refused
    mesh.py             this rank's place among the groups
    layers.py gate.py norm.py
                        the layer from Megatron's parallel parts; the fused matrices
    context.py          rows split over ranks: what attention fetches from others
    shift.py            the cross-loop shift over split rows
    stage.py            one rank's parameters; runs ONE loop given its input and loop 1's keys and values
    loops.py            all loops in one graph (one pipeline stage)
    pipeline.py         loops as virtual pipeline stages
    recompute.py        activation checkpointing
    parameters.py       this rank's tensors <-> boxes of released names
    optimizer.py        AdamW by Megatron's optimizers; its state under layout-free names
    measure.py recorder.py
                        forward passes that are looked into: losses of every loop, telemetry
    quiet.py            warnings left out, with reasons
    engine.py           MegatronEngine, the training loop's view

Any import from this package runs the lines below first, so the CPU stand-in is always in place before Megatron
binds what it replaces.
"""

# ruff: noqa: E402 - the order of these lines is the point
from loopcoder_train.engines.megatron.quiet import quiet_megatron
from loopcoder_train.runtime import cpu_device

quiet_megatron(on_cpu=cpu_device.install())

from loopcoder_train.engines.megatron.engine import MegatronEngine

__all__ = ["MegatronEngine"]
