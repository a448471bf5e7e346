"""What a checkpoint holds besides tensors, and how a run is put back where it was.

`state.json` (one per checkpoint, equal for all ranks):

    {"version": 2, "training": TrainingState, "engine": scalars, "stream": position and hashes, "loggers": run ids,
     "options": the options that change the result, "history": StepHistory}

and one JSON object per rank with its random generators. Nothing in training draws random numbers today (initial values
and data order are functions of the seed), so a changed number of processes, for which no generators are saved, changes
nothing; they are kept so that whatever draws tomorrow resumes exactly.
"""

import base64
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from loopcoder_train.config import UserError
from loopcoder_train.engines.engine import Engine
from loopcoder_train.model.state import TensorShard
from loopcoder_train.training.state import TrainingState

VERSION = 2
_KEYS = ("training", "engine", "stream", "loggers", "options", "history")

Json = dict[str, Any]


class SavedCheckpoint(Protocol):
    """What is read of a checkpoint (`checkpoint/` has the real one)."""

    state: Json

    def fill(self, shards: list[TensorShard]) -> object:
        """Copy the saved tensors into the shards."""
        ...

    def rank_state(self, rank: int, world_size: int) -> Json | None:
        """What `rank` saved, None when the checkpoint is of another number of processes."""
        ...


@dataclass(slots=True)
class RunSnapshot:
    """The parsed `state.json`."""

    training: TrainingState
    engine: dict[str, int | float]
    stream: Json  # of `TokenStream.state`; the stream itself checks it
    loggers: dict[str, str]  # sink -> run id
    options: Json  # dotted name -> value, of what changes the result (config/compare.py)
    history: Json  # of `StepHistory.to_json`

    def to_json(self) -> Json:
        """The content of `state.json`."""
        return {
            "version": VERSION,
            "training": self.training.to_json(),
            "engine": self.engine,
            "stream": self.stream,
            "loggers": self.loggers,
            "options": self.options,
            "history": self.history,
        }

    @classmethod
    def from_json(cls, content: Json) -> "RunSnapshot":
        """Parse `state.json`. UserError when it is of another version or incomplete."""
        if content.get("version") != VERSION:
            raise UserError(f"checkpoint state: version={content.get('version')}, this program reads {VERSION}")
        missing = [key for key in _KEYS if key not in content]
        if missing:
            raise UserError(f"checkpoint state: {', '.join(missing)} missing; use an older checkpoint")
        try:
            training = TrainingState.from_json(content["training"])
        except TypeError as error:
            raise UserError(f"checkpoint state: training={content['training']}: {error}") from error
        return cls(training=training, **{key: content[key] for key in _KEYS if key != "training"})


def restore(
    checkpoint: SavedCheckpoint, engine: Engine, *, rank: int, world_size: int, device: torch.device
) -> RunSnapshot:
    """Fill the engine (weights, optimizer), set this rank's generators and return the rest. Every rank calls it."""
    snapshot = RunSnapshot.from_json(checkpoint.state)
    checkpoint.fill(engine.state_shards(loading=True))
    engine.load_state_scalars(snapshot.engine)
    saved = checkpoint.rank_state(rank, world_size)
    if saved is not None:
        restore_random_state(saved["random"], device)
    return snapshot


def rank_state(device: torch.device) -> Json:
    """What only this rank knows."""
    return {"random": random_state(device)}


def random_state(device: torch.device) -> Json:
    """Python's, numpy's, torch's and, on CUDA, the device's generators as JSON."""
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    state: Json = {
        "python": [version, list(internal), gauss],
        "numpy": [name, _encode(keys.astype("<u4").tobytes()), position, has_gauss, cached],
        "torch": _encode(torch.get_rng_state().numpy().tobytes()),
    }
    if device.type == "cuda":
        state["cuda"] = _encode(torch.cuda.get_rng_state(device).numpy().tobytes())
    return state


def restore_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Set the generators to `random_state`. A state saved on CUDA may be read on CPU and the other way round."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.frombuffer(_decode(keys), dtype="<u4"), position, has_gauss, cached))
    torch.set_rng_state(_byte_tensor(state["torch"]))
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(_byte_tensor(state["cuda"]), device)


def _byte_tensor(text: str) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(_decode(text), dtype=np.uint8).copy())


def _encode(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _decode(text: str) -> bytes:
    return base64.b64decode(text, validate=True)
