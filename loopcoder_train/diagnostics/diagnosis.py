"""The result of `loopcoder diagnose`: estimates by loop and layer, and what they were made from."""

from collections.abc import Mapping
from dataclasses import dataclass

from loopcoder_train.diagnostics.confidence import Estimate
from loopcoder_train.diagnostics.gain_cost import gain_cost
from loopcoder_train.diagnostics.measurements import Key


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """`step` and `tokens` are those of the checkpoint."""

    step: int
    tokens: int
    num_loops: int  # at inference
    trained_num_loops: int
    untrained_gates: bool  # of a run of one loop that is read with more: they are 0.5 everywhere
    num_layers: int
    num_documents: int  # that the samples are parts of; intervals are over these
    sample_tokens: int  # of all samples
    samples_by_source: dict[str, int]
    too_short: int  # documents, or parts of one in a row, passed over
    attention_queries: int | None
    min_sample_tokens: int
    estimates: Mapping[Key, Estimate]

    @property
    def num_samples(self) -> int:
        """Parts of documents in rows that were looked at."""
        return sum(self.samples_by_source.values())

    def of_loop(self, loop: int) -> dict[str, Estimate]:
        """Every number of a loop by its lens; means over the layers where lenses look at layers."""
        return {key.lens: value for key, value in self.estimates.items() if key.loop == loop and key.layer is None}

    def of_layer(self, loop: int, layer: int) -> dict[str, Estimate]:
        """Every number of one layer in one loop."""
        return {key.lens: value for key, value in self.estimates.items() if (key.loop, key.layer) == (loop, layer)}

    def series(self, lens: str) -> dict[int, Estimate]:
        """One lens by loop, where it is defined."""
        loops = ((loop, self.estimates.get(Key(loop, lens))) for loop in range(1, self.num_loops + 1))
        return {loop: value for loop, value in loops if value is not None}

    def to_json(self) -> dict[str, object]:
        """The content of `diagnostics.json`; lenses that a loop does not have are absent."""
        loops = range(1, self.num_loops + 1)
        layers = range(self.num_layers)
        return {
            "step": self.step,
            "tokens": self.tokens,
            "num_loops": self.num_loops,
            "trained_num_loops": self.trained_num_loops,
            "untrained_gates": self.untrained_gates,
            "num_samples": self.num_samples,
            "num_documents": self.num_documents,
            "sample_tokens": self.sample_tokens,
            "samples_by_source": self.samples_by_source,
            "documents_too_short": self.too_short,
            "min_sample_tokens": self.min_sample_tokens,
            "attention_queries": self.attention_queries,
            "loops": {str(loop): _json(self.of_loop(loop)) for loop in loops},
            "layers": {
                str(loop): {str(layer): _json(self.of_layer(loop, layer)) for layer in layers} for loop in loops
            },
            "gain_cost": [point.to_json() for point in gain_cost(self.estimates, self.num_loops)],
        }


def _json(values: Mapping[str, Estimate]) -> dict[str, object]:
    return {lens: value.to_json() for lens, value in values.items()}
