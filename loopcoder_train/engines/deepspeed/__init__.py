"""The plain PLT under DeepSpeed's ZeRO. The only importer of deepspeed.

    prepare.py      what must be said to DeepSpeed before it looks around
    setup.py        DeepSpeed's configuration, the model on this rank, AdamW, recomputation
    revisits.py     stage 3 with several loops: weights are released after every visit
    partitions.py   which parts of which parameters this rank updates, for stages 1, 2 and for stage 3
    state.py        weights and moments as boxes of released names
    engine.py       ZeroEngine, the training loop's view

Any import from this package prepares DeepSpeed first.
"""

# ruff: noqa: E402 - the order of these lines is the point
from loopcoder_train.engines.deepspeed.prepare import prepare

prepare()

from loopcoder_train.engines.deepspeed.engine import ZeroEngine

__all__ = ["ZeroEngine"]
