"""Records the weights that a run really began with: one fingerprint per parameter, whatever the engine and the layout.

Initial values are a function of (seed, name), so runs that are compared should begin alike; this is what each of them
did hold, read back from its engine before the first step.
"""

from collections.abc import Iterable

from loopcoder_train.checkpoint import Ranks
from loopcoder_train.engines.engine import Engine
from loopcoder_train.engines.fingerprint import box_fingerprint
from loopcoder_train.model.state import MODEL_PREFIX
from loopcoder_train.training.across_ranks import gather_over_ranks
from loopcoder_train.training.metrics import Metrics

INITIAL_VALUES = "initial_values"  # event


def record_initial_values(engine: Engine, names: Iterable[str], metrics: Metrics) -> None:
    """Write the event, on the rank that writes. `names`: of all parameters. Collective."""
    found = weight_fingerprints(engine, names)
    metrics.event(INITIAL_VALUES, 0, f"{len(found)} tensors begin with values from the seed", fingerprints=found)


def weight_fingerprints(engine: Engine, names: Iterable[str]) -> dict[str, int]:
    """Parameter -> fingerprint of its fp32 weights, the same on every rank and in every layout. Collective."""
    own = dict.fromkeys(names, 0)
    for shard in engine.state_shards(loading=False):
        name = shard.name.removeprefix(MODEL_PREFIX)
        if shard.owner and name in own:
            own[name] = _wrapped(own[name] + int(box_fingerprint(shard)))
    table = gather_over_ranks(engine, Ranks.current(), list(own.values()))
    return {name: _wrapped(sum(column)) for name, column in zip(own, zip(*table, strict=True), strict=True)}


def _wrapped(number: int) -> int:
    """The 64-bit integer that a sum of such integers is, modulo 2^64."""
    return (number + 2**63) % 2**64 - 2**63
