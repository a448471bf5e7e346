"""What a run is: plain dataclasses with units in their names and rules in ``__post_init__``.

No torch, no Hydra, no file system. The launcher fills these from Hydra's YAML groups (``configs/``), the workers from
``run.yaml``; both end in the same :class:`~loopcoder_train.config.run.RunConfig`.
"""

from loopcoder_train.config.data import DataConfig
from loopcoder_train.config.data_reading import OnBadBlock
from loopcoder_train.config.errors import UserError
from loopcoder_train.config.finetune import ConversationKind, ConversationSource, FinetuneConfig, OnTooLong
from loopcoder_train.config.guards import GuardsConfig, OnBadStep
from loopcoder_train.config.kernels import GlobalKernel, KernelConfig, LocalKernel
from loopcoder_train.config.launch import LaunchConfig, LaunchKind
from loopcoder_train.config.model import GateInput, LoopKind, ModelConfig
from loopcoder_train.config.optimizer import OptimizerConfig, ScheduleConfig, ScheduleKind
from loopcoder_train.config.parallel import ParallelConfig
from loopcoder_train.config.run import (
    CheckpointConfig,
    EngineKind,
    EvaluationConfig,
    LoggingConfig,
    RunConfig,
    TelemetryConfig,
    WandbMode,
)
from loopcoder_train.config.training import ActivationCheckpointing, Device, Precision, TrainingConfig

__all__ = [
    "ActivationCheckpointing",
    "CheckpointConfig",
    "ConversationKind",
    "ConversationSource",
    "DataConfig",
    "Device",
    "EngineKind",
    "EvaluationConfig",
    "FinetuneConfig",
    "GateInput",
    "GlobalKernel",
    "GuardsConfig",
    "KernelConfig",
    "LaunchConfig",
    "LaunchKind",
    "LocalKernel",
    "LoggingConfig",
    "LoopKind",
    "ModelConfig",
    "OnBadBlock",
    "OnBadStep",
    "OnTooLong",
    "OptimizerConfig",
    "ParallelConfig",
    "Precision",
    "RunConfig",
    "ScheduleConfig",
    "ScheduleKind",
    "TelemetryConfig",
    "TrainingConfig",
    "UserError",
    "WandbMode",
]
