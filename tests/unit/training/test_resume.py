import json
import random

import numpy as np
import pytest
import torch

from loopcoder_train.config import UserError
from loopcoder_train.training.resume import RunSnapshot, random_state, restore_random_state
from loopcoder_train.training.state import TrainingState

CPU = torch.device("cpu")


def draw() -> list[float]:
    return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), *torch.randn(3).tolist()]


def test_random_generators_survive_json():
    draw()
    saved = json.loads(json.dumps(random_state(CPU)))
    first = draw()
    draw()
    restore_random_state(saved, CPU)
    assert draw() == first


def test_snapshot_round_trip():
    state = TrainingState(step=3, tokens=96, supervised_tokens=90, attempt=2, best_held_out_loss=1.5, best_step=2)
    snapshot = RunSnapshot(state, {"optimizer_step": 3}, {"position": 12}, {"wandb": "id"}, {"seed": 0}, {"ledger": []})
    assert RunSnapshot.from_json(json.loads(json.dumps(snapshot.to_json()))) == snapshot


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 99}, "version=99"),
        ({"stream": None}, "stream missing"),
        ({"training": {"step": 1, "unknown": 2}}, "unknown"),
    ],
)
def test_a_foreign_state_is_a_users_error(change, message):
    content = RunSnapshot(TrainingState(), {}, {}, {}, {}, {}).to_json() | change
    content = {key: value for key, value in content.items() if value is not None}
    with pytest.raises(UserError, match=message):
        RunSnapshot.from_json(content)
