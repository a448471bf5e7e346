"""How fast a run goes: tokens and model FLOPs per second, time waited for data, memory high-water mark.

Steps are collected without any communication; :meth:`ThroughputMeter.read` asks all ranks once per window. Model FLOPs
follow the documents: attention pairs are counted from each batch's document boundaries, loop by loop
(`model/counts.py`), so short documents do not inflate the rate.
"""

import resource
import sys
from dataclasses import dataclass

import torch

from loopcoder_train.config import ModelConfig
from loopcoder_train.engines.engine import Engine
from loopcoder_train.model.counts import AttentionPairs, attention_pairs, training_flops
from loopcoder_train.training.loop import Step


@dataclass(slots=True)
class Window:
    """Some steps in a row. Times are of the slowest rank and exclude hooks (evaluation, saving)."""

    steps: int
    tokens: int
    model_flops: float  # forward and backward of the model as defined, without recomputation
    seconds: float
    data_wait_seconds: float  # part of `seconds`
    memory_bytes: int  # high-water mark of the fullest rank

    def metrics(self) -> dict[str, float]:
        """The keys of a train record."""
        return {
            "tokens_per_second": self.tokens / self.seconds,
            "model_flops_per_second": self.model_flops / self.seconds,
            "model_flops": self.model_flops,
            "step_seconds": self.seconds / self.steps,
            "data_wait_seconds": self.data_wait_seconds / self.steps,
            "memory_bytes": self.memory_bytes,
        }


class ThroughputMeter:
    """Collects steps into a :class:`Window`. `device` decides whose memory is watched."""

    def __init__(self, model: ModelConfig, engine: Engine, device: torch.device) -> None:
        self._model, self._engine, self._device = model, engine, device
        self._reset()

    def _reset(self) -> None:
        self.steps = 0
        self._tokens = self._causal_pairs = self._window_pairs = 0
        self._seconds = self._wait = 0.0

    def add(self, step: Step) -> None:
        """Count one step of this rank."""
        self.steps += 1
        self._tokens += step.tokens
        self._seconds += step.seconds
        self._wait += step.data_wait_seconds
        for batch in step.batches:
            pairs = attention_pairs(batch.document_ids, self._model.window_left)
            self._causal_pairs += pairs.causal
            self._window_pairs += pairs.window

    def read(self) -> Window:
        """The window since the last reading, over all ranks (two collectives), and start a new one."""
        own = torch.tensor([self._seconds, self._wait, memory_high_water(self._device)], dtype=torch.float64)
        seconds, wait, memory = self._engine.max_over_ranks(own).tolist()
        pairs = torch.tensor([self._causal_pairs, self._window_pairs], dtype=torch.float64)
        causal, window = (round(value) for value in self._engine.sum_over_data_parallel(pairs).tolist())
        result = Window(
            steps=self.steps,
            tokens=self._tokens,
            model_flops=training_flops(self._model, self._tokens, AttentionPairs(causal, window)),
            seconds=seconds,
            data_wait_seconds=wait,
            memory_bytes=int(memory),
        )
        self._reset()
        return result


def memory_high_water(device: torch.device) -> int:
    """Most bytes this process has held: allocated on the GPU, or resident on a CPU run."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
