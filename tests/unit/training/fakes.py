"""A one-parameter model behind the engine protocol, and a stream that is a function of the step."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from loopcoder_train.config import ModelConfig
from loopcoder_train.engines.engine import MicroBatch, StepResult
from loopcoder_train.model.state import TensorShard, whole

SEQUENCE_LENGTH = 8
BATCH = 4

TINY = ModelConfig(
    hidden_size=8,
    intermediate_size=16,
    num_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=4,
    vocab_size=32,
)


@dataclass
class NumpyBatch:
    input_ids: np.ndarray
    labels: np.ndarray
    document_ids: np.ndarray
    source_ids: np.ndarray


def batch_of_step(step: int) -> NumpyBatch:
    generator = np.random.default_rng(step)
    ids = generator.integers(0, 32, (BATCH, SEQUENCE_LENGTH))
    documents = np.zeros((BATCH, SEQUENCE_LENGTH), np.int32)
    documents[:, 5:] = 1
    labels = ids.copy()
    labels[:, 4] = -100
    return NumpyBatch(ids, labels, documents, np.arange(BATCH))


def data_from(step: int) -> Iterator[list[NumpyBatch]]:
    while True:
        step += 1
        yield [batch_of_step(step)]


class FakeEngine:
    """Fits one weight to the mean token id by gradient descent with momentum: resuming without either state shows."""

    data_parallel_rank = 0
    data_parallel_size = 1

    def __init__(self, nan_at: int | None = None) -> None:
        self.weight, self.momentum = torch.zeros(1), torch.zeros(1)
        self.steps = 0
        self.nan_at = nan_at
        self.learning_rates: list[float] = []

    def train_step(self, micro_batches: list[MicroBatch], learning_rate: float) -> StepResult:
        self.steps += 1
        self.learning_rates.append(learning_rate)
        target = torch.cat([batch.input_ids for batch in micro_batches]).float().mean()
        error = self.weight - target
        self.momentum.mul_(0.9).add_(error)
        self.weight -= learning_rate * self.momentum
        supervised = sum(int((batch.labels != -100).sum()) for batch in micro_batches)
        loss = float(error.square()) if self.steps != self.nan_at else float("nan")
        return StepResult(loss, supervised, float(error.abs()))

    def token_losses(self, batch: MicroBatch) -> torch.Tensor:
        return torch.stack([torch.where(batch.labels == -100, 0.0, self.weight * factor) for factor in (2.0, 1.0)])

    def loop_telemetry(self, batch: MicroBatch) -> dict[str, float]:
        return {"loop2/gate_mean": float(batch.input_ids.sum())}

    def sum_over_data_parallel(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def max_over_ranks(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def state_shards(self, *, loading: bool) -> list[TensorShard]:
        return [whole("model/weight", self.weight), whole("adam_first_moment/weight", self.momentum)]

    def state_scalars(self) -> dict[str, int | float]:
        return {"optimizer_step": self.steps}

    def load_state_scalars(self, scalars: dict[str, int | float]) -> None:
        self.steps = int(scalars["optimizer_step"])
