"""What the lenses have seen so far: a sum and a count per (loop, layer, lens) and document, in fp64."""

from dataclasses import dataclass, field

from torch import Tensor

from loopcoder_train.diagnostics.confidence import Estimate, estimate
from loopcoder_train.diagnostics.samples import Sample


@dataclass(frozen=True, slots=True)
class Key:
    """Which number: of a loop (from 1), and of one layer (from 0) unless it is the mean over the layers."""

    loop: int
    lens: str
    layer: int | None = None


@dataclass(slots=True)
class Measurements:
    """Sums and counts by the number of a document; they grow with the documents, not with tokens."""

    values: dict[Key, dict[int, tuple[float, float]]] = field(default_factory=dict)

    def add(self, key: Key, sample: Sample, values: Tensor) -> None:
        """Some values of one sample, of any shape; their mean is what is asked for."""
        self.add_ratio(key, sample, float(values.double().sum()), values.numel())

    def add_ratio(self, key: Key, sample: Sample, numerator: float, denominator: float) -> None:
        """A share of a sample: sums of both over the documents are divided."""
        of_documents = self.values.setdefault(key, {})
        before = of_documents.get(sample.document, (0.0, 0.0))
        of_documents[sample.document] = (before[0] + numerator, before[1] + denominator)

    def add_layer(self, loop: int, layer: int, lens: str, sample: Sample, values: Tensor) -> None:
        """Values of one layer; they count for the layer, and alike for the mean over the loop's layers."""
        total = float(values.double().sum())
        for key in (Key(loop, lens, layer), Key(loop, lens)):
            self.add_ratio(key, sample, total, values.numel())

    def estimates(self) -> dict[Key, Estimate]:
        """Mean and interval of everything that is defined; what is not (0/0) is absent."""
        found = {key: estimate(*zip(*sums.values(), strict=True)) for key, sums in self.values.items()}
        return {key: value for key, value in found.items() if value is not None}
