"""Runs that the planning tests are about."""

from pathlib import Path

import yaml

from loopcoder_train.config import DataConfig, ModelConfig, ParallelConfig, TrainingConfig
from loopcoder_train.config.io import from_dict
from loopcoder_train.config.plan import PlanOptions

MODELS = Path(__file__).parents[3] / "configs" / "model"


def plt_7b(num_loops: int = 2) -> ModelConfig:
    """The released shape."""
    values = yaml.safe_load((MODELS / "plt_7b.yaml").read_text())
    return from_dict(ModelConfig, values | {"num_loops": num_loops})


def paper_options(
    model: ModelConfig | None = None,
    parallel: dict | None = None,
    training: dict | None = None,
    sequence_length: int = 4096,
    **options: object,
) -> PlanOptions:
    """The paper's batches on `parallel`; `options` are those of `loopcoder plan`."""
    batches = {"num_steps": 1000, "global_batch_size": 1024, "micro_batch_size": 1}
    return PlanOptions(
        run_dir="unused",
        model=model or plt_7b(),
        training=TrainingConfig(**(batches | (training or {}))),
        data=DataConfig(sequence_length=sequence_length),
        parallel=ParallelConfig(**(parallel or {})),
        **options,
    )
