"""A trained run read back for evaluation or sampling: its configuration, corpus and plain model, no engine."""

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from data_pipeline.manifest import Corpus
from loopcoder_train.checkpoint import Checkpoint, find_checkpoint, require_checkpoint
from loopcoder_train.config import Device, ModelConfig, Precision, RunConfig, UserError
from loopcoder_train.config.io import RUN_CONFIG_FILE, read_run_config
from loopcoder_train.engines.engine import MicroBatch
from loopcoder_train.model import PLT, build_model
from loopcoder_train.model.init import initial_value
from loopcoder_train.model.loss import token_losses
from loopcoder_train.model.names import is_gate
from loopcoder_train.model.state import MODEL_PREFIX, whole
from loopcoder_train.runtime.device import choose_device, set_threads
from loopcoder_train.runtime.memory import keep_freed_memory
from loopcoder_train.training.corpus import open_corpus
from loopcoder_train.training.resume import RunSnapshot

logger = logging.getLogger(__name__)

_DTYPES = {Precision.fp32: torch.float32, Precision.bf16: torch.bfloat16}


@dataclass(slots=True)
class LoadedRun:
    """One checkpoint of a run in memory. `model` computes in the precision the run was trained in.

    untrained_gates: a run of one loop is read with more; its gates have their initial value, 0.5 everywhere.
    """

    run_dir: Path
    config: RunConfig
    snapshot: RunSnapshot
    corpus: Corpus
    device: torch.device
    model: PLT

    @property
    def untrained_gates(self) -> bool:
        """See above."""
        return self.model.config.has_gates and not self.config.model.has_gates


def load_run(
    run_dir: str, *, step: int | None, num_loops: int | None, device: Device, num_threads: int | None = None
) -> LoadedRun:
    """Read the newest good checkpoint of `run_dir`, or that of `step`; `num_loops` overrides the trained R.

    num_threads: CPU threads of this process from now on; None leaves them as they are.

    Raises UserError or DataError, one line each, when the run, a good checkpoint or its corpus is missing, when the
    corpus has another tokenizer than the run was trained with.
    """
    folder = Path(run_dir)
    if not (folder / RUN_CONFIG_FILE).is_file():
        raise UserError(f"run_dir={run_dir}: no run there ({RUN_CONFIG_FILE} is missing); give the folder of a run")
    config = read_run_config(folder / RUN_CONFIG_FILE)
    checkpoint = _newest_good(folder, step)
    snapshot = RunSnapshot.from_json(checkpoint.state)
    corpus = open_corpus(config.data)
    _check_tokenizer(corpus, snapshot)
    if num_threads is not None:
        set_threads(num_threads, local_world_size=1)
    chosen = choose_device(device)
    if chosen.type == "cpu":
        keep_freed_memory()
    model = load_model(checkpoint, with_loops(config.model, num_loops), config, chosen)
    return LoadedRun(folder, config, snapshot, corpus, chosen, model)


def with_loops(model: ModelConfig, num_loops: int | None) -> ModelConfig:
    """The same model visited `num_loops` times."""
    return model if num_loops is None else dataclasses.replace(model, num_loops=num_loops)


def load_model(checkpoint: Checkpoint, model_config: ModelConfig, run: RunConfig, device: torch.device) -> PLT:
    """The plain model with the checkpoint's weights, ready for inference; gates that it lacks have initial values."""
    with torch.device("meta"):
        model = build_model(model_config, run.kernels)
    model = model.to(_DTYPES[run.training.precision]).to_empty(device=device)
    weights = dict(model.named_parameters())
    new = [name for name in weights if is_gate(name) and not run.model.has_gates]
    for name in new:
        weight = weights.pop(name)
        weight.data.copy_(initial_value(name, tuple(weight.shape), model_config, run.seed))
    if new:
        logger.warning(
            "num_loops=%d: the run was trained with one loop and has no gates; they are 0.5 everywhere",
            model_config.num_loops,
        )
    checkpoint.fill([whole(MODEL_PREFIX + name, weight.data) for name, weight in weights.items()])
    return model.eval().requires_grad_(False)


class PlainLosses:
    """Token losses of a plain model on one process, as `evaluate_heldout` wants them."""

    data_parallel_rank = 0
    data_parallel_size = 1

    def __init__(self, model: PLT, device: torch.device) -> None:
        self._model, self._device = model, device

    @torch.no_grad()
    def token_losses(self, batch: MicroBatch) -> torch.Tensor:
        """fp32 [R, B, S]: every loop read through the final norm and the head."""
        labels = batch.labels.to(self._device)
        loops = self._model.loops(batch.input_ids.to(self._device), batch.document_ids.to(self._device))
        return torch.stack([token_losses(self._model.logits(hidden), labels) for hidden, _ in loops])

    def sum_over_data_parallel(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor itself."""
        return tensor


def _newest_good(run_dir: Path, step: int | None) -> Checkpoint:
    found = find_checkpoint(run_dir, step)
    if found.checkpoint is None:
        return require_checkpoint(run_dir, step)  # raises with the reason
    for line in found.rejected:
        logger.warning("%s; step %d is used", line, found.checkpoint.step)
    return found.checkpoint


def _check_tokenizer(corpus: Corpus, snapshot: RunSnapshot) -> None:
    trained, present = snapshot.stream["tokenizer_hash"], corpus.manifest.tokenizer_hash
    if trained != present:
        raise UserError(
            f"{corpus.directory}: its tokenizer ({present[:12]}) is not the one of the run ({trained[:12]}); "
            f"restore the corpus that the run was trained on"
        )
