"""Small numbers of every rank, on every rank."""

import socket
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from loopcoder_train.checkpoint import Ranks
from loopcoder_train.engines.engine import Engine

_NOTHING = torch.iinfo(torch.int64).min


@dataclass(frozen=True, slots=True)
class Machines:
    """Where every rank runs, in rank order."""

    hosts: list[str]

    @classmethod
    def of(cls, ranks: Ranks) -> "Machines":
        """Ask every rank; collective."""
        return cls(ranks.gather(socket.gethostname()))

    def called(self, ranks: Sequence[int]) -> str:
        """`rank 3 (node7) and rank 5 (node8)`."""
        return " and ".join(f"rank {rank} ({self.hosts[rank]})" for rank in ranks)


def gather_over_ranks(engine: Engine, ranks: Ranks, values: Sequence[int]) -> list[list[int]]:
    """Every rank's integers (of 64 bits, but not the least), in rank order: one small collective."""
    table = torch.full((ranks.size, len(values)), _NOTHING, dtype=torch.int64)
    table[ranks.rank] = torch.tensor(values, dtype=torch.int64)
    return engine.max_over_ranks(table).tolist()
