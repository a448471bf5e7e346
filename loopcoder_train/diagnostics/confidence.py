"""Means with 95% confidence intervals over held-out documents.

The tokens of one document are not independent; documents are taken to be. So a mean over tokens is a ratio of sums over
documents, x_i = sum of a document's values and n_i = their number, and its interval comes from the documents' spread
(the ratio estimator of survey sampling, Cochran 1977, section 2.11):

    m = sum x_i / sum n_i
    s^2 = k / (k - 1) * sum (x_i - m n_i)^2 / (sum n_i)^2        for k documents
    m -+ t(0.975, k - 1) s

With n_i = 1 (a value per document, such as an effective rank) this is the textbook interval of a mean. The interval
speaks of other documents drawn like these, and of nothing else: not of another seed of training, nor of another corpus.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean, half the width of its interval, at 95% unless it was asked otherwise (None for one document), and the
    number of documents."""

    mean: float
    half_width: float | None
    samples: int

    @property
    def low(self) -> float:
        """Lower end of the interval; the mean itself where there is none."""
        return self.mean - (self.half_width or 0.0)

    @property
    def high(self) -> float:
        """Upper end."""
        return self.mean + (self.half_width or 0.0)

    def to_json(self) -> dict[str, object]:
        """`{"mean": m, "ci95": [low, high] or null, "samples": k}`."""
        interval = None if self.half_width is None else [self.low, self.high]
        return {"mean": self.mean, "ci95": interval, "samples": self.samples}


def estimate(sums: Sequence[float], counts: Sequence[float], level: float = LEVEL) -> Estimate | None:
    """Mean of what `sums` and `counts` [k] of k documents hold; documents of count 0 say nothing. `level`: of the
    interval.

    None when no document is left: there is no such number, and no 0/0.
    """
    x, n = np.asarray(sums, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    x, n = x[n > 0], n[n > 0]
    k = len(n)
    if k == 0:
        return None
    mean = float(x.sum() / n.sum())
    if k == 1:
        return Estimate(mean, None, 1)
    variance = k / (k - 1) * float(((x - mean * n) ** 2).sum()) / float(n.sum()) ** 2
    quantile = float(stats.t.ppf(0.5 + level / 2, k - 1))
    return Estimate(mean, quantile * variance**0.5, k)
