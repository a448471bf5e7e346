import math

import pytest

from loopcoder_train.config import OptimizerConfig, ScheduleConfig, ScheduleKind
from loopcoder_train.training.schedule import learning_rate

OPTIMIZER = OptimizerConfig(peak_lr=2.0)
COSINE = ScheduleConfig(warmup_fraction=0.1, final_lr_fraction=0.1)
WSD = ScheduleConfig(kind=ScheduleKind.wsd, warmup_fraction=0.1, decay_fraction=0.2, final_lr_fraction=0.1)


def at(tokens: int, schedule: ScheduleConfig, total: int = 1000) -> float:
    return learning_rate(tokens, total_tokens=total, optimizer=OPTIMIZER, schedule=schedule)


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (1, 0.02),  # first token of the warm-up: 1/100 of the peak
        (50, 1.0),
        (100, 2.0),  # peak exactly at the end of the warm-up
        (325, 0.2 + 1.8 * (1 + math.cos(math.pi / 4)) / 2),
        (550, 1.1),  # half way: mean of peak and final
        (1000, 0.2),
        (5000, 0.2),  # beyond the end
    ],
)
def test_cosine(tokens, expected):
    assert at(tokens, COSINE) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("tokens", "expected"), [(1, 0.02), (100, 2.0), (500, 2.0), (800, 2.0), (900, 1.1), (1000, 0.2), (1001, 0.2)]
)
def test_wsd(tokens, expected):
    assert at(tokens, WSD) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", list(ScheduleKind))
def test_edges(kind):
    no_warmup = ScheduleConfig(kind=kind, warmup_fraction=0.0, decay_fraction=0.0)
    assert at(0, no_warmup) == 2.0
    only_warmup = ScheduleConfig(kind=kind, warmup_fraction=1.0, decay_fraction=0.0)
    assert at(500, only_warmup) == 1.0
    assert at(1000, only_warmup) == 2.0


def test_batch_size_does_not_bend_the_curve():
    small = [at(tokens, COSINE, total=8000) for tokens in range(100, 8001, 100)]
    large = [at(tokens, COSINE, total=8000) for tokens in range(400, 8001, 400)]
    assert small[3::4] == large
