"""A run directory after a few steps of the plain engine in fp32, on the corpus of corpus.py."""

from functools import partial
from pathlib import Path

import torch

from data_pipeline.mixture import Mixture
from data_pipeline.segments import one_segment
from data_pipeline.stream import TokenStream
from loopcoder_train.config import (
    CheckpointConfig,
    DataConfig,
    Device,
    EngineKind,
    EvaluationConfig,
    OptimizerConfig,
    Precision,
    RunConfig,
    TrainingConfig,
)
from loopcoder_train.config.compare import result_options
from loopcoder_train.config.io import write_run_config
from loopcoder_train.engines.plain import PlainEngine
from loopcoder_train.evaluation.heldout import evaluate_heldout
from loopcoder_train.model.names import parameter_shapes
from loopcoder_train.training.checkpoint_hook import CheckpointHook
from loopcoder_train.training.consumption import ConsumptionHook
from loopcoder_train.training.evaluate_hook import EvaluateHook
from loopcoder_train.training.first_weights import record_initial_values
from loopcoder_train.training.log_hook import LogHook
from loopcoder_train.training.loop import Run, fit
from loopcoder_train.training.metrics import METRICS_FILE, MetricsWriter
from loopcoder_train.training.schedule import learning_rate
from tests.conftest import small_model
from tests.unit.evaluation.corpus import make_corpus

CPU = torch.device("cpu")
STEPS, BATCH, S = 6, 4, 32


def train(root: Path, **model) -> Path:
    """Train below `root`; `model`: what differs from `small_model`. Checkpoints at steps 3 and 6."""
    corpus = make_corpus(root / "corpus")
    config = RunConfig(
        run_dir=str(root / "run"),
        model=small_model(vocab_size=corpus.manifest.vocab_size + 8, max_position_embeddings=64, **model),
        training=TrainingConfig(
            num_steps=STEPS, global_batch_size=BATCH, micro_batch_size=2, precision=Precision.fp32, device=Device.cpu
        ),
        engine=EngineKind.plain,
        data=DataConfig(corpus_dir=str(root / "corpus"), sequence_length=S, shuffle_block_tokens=16),
        optimizer=OptimizerConfig(peak_lr=5e-3),
        evaluation=EvaluationConfig(max_sequences_per_source=4, batch_size=3),
    )
    run_dir = root / "run"
    run_dir.mkdir()
    write_run_config(config, run_dir / "run.yaml")
    quotas = [STEPS * BATCH // 4, STEPS * BATCH // 4, STEPS * BATCH // 2, 0]
    mixture = Mixture(corpus.manifest.names, corpus.manifest.kinds, quotas)
    stream = one_segment(TokenStream(corpus, mixture, S, 0, shuffle_block_tokens=16), BATCH)
    engine = PlainEngine(config, CPU)
    hooks = [
        ConsumptionHook(stream.names_of, config.model.window_left),
        LogHook(config.model, CPU, every_steps=1, kinds=stream.kinds),
        EvaluateHook(lambda: evaluate_heldout(engine, corpus, S, 3, 4).metrics(), every_steps=3),
        CheckpointHook(
            CheckpointConfig(every_steps=3),
            CPU,
            stream_state=stream.state,
            logger_run_ids={},
            options=result_options(config),
        ),
    ]
    data = iter([[stream.read(batch)] for batch in range(STEPS)])
    with MetricsWriter(run_dir / METRICS_FILE) as metrics:
        run = Run(
            run_dir=run_dir,
            engine=engine,
            data=data,
            learning_rate=partial(
                learning_rate,
                total_tokens=config.total_tokens,
                optimizer=config.optimizer,
                schedule=config.schedule,
            ),
            num_steps=STEPS,
            batch_tokens=stream.batch_tokens,
            metrics=metrics,
        )
        record_initial_values(engine, parameter_shapes(config.model), metrics)
        fit(run, hooks)
    return run_dir
