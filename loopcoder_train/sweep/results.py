"""What every arm came to, as numbers: from the files that its stages have left, nothing computed anew but means.

An arm's loss is that of its last loop on the held-out documents of the corpus, in nats per token, after pretraining.
Its interval is over documents (diagnostics/confidence.py); with several seeds of one value, over seeds.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from loopcoder_train.config import UserError
from loopcoder_train.diagnostics.command import DIAGNOSTICS_NAME
from loopcoder_train.diagnostics.confidence import Estimate, estimate
from loopcoder_train.evaluation.command import EVALUATION_FILE, documents_path
from loopcoder_train.model.counts import count_parameters, kv_cache_bytes
from loopcoder_train.sweep.arms import Arm
from loopcoder_train.sweep.facts import RunFacts
from loopcoder_train.sweep.stages import FINETUNE, PRETRAIN
from loopcoder_train.training.metrics import METRICS_FILE, read_metrics

Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """Held-out loss while training."""

    tokens: int
    flops: float
    loss: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Tuned:
    """After tuning: `loss` of the assistant's words in held-out conversations; `corpus_loss` of the documents that the
    arm was evaluated on before tuning, unless `sweep.evaluate` says otherwise."""

    loss: float
    tokens: int  # supervised, of the held-out conversations
    corpus_loss: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ArmResult:
    """One arm. Losses in nats per token; `loop_losses` read after every loop; `inference`: R at inference -> loss."""

    name: str
    label: str
    value: Any
    seed: int
    reference: str | None
    num_loops: int
    num_layers: int
    parameters: int
    tokens: int
    training_flops: int
    training_seconds: float
    kv_cache_bytes: int  # of one sequence of the training length, in bf16
    loss: Estimate
    loop_losses: list[float]
    bits_per_byte: float | None
    by_language: dict[str, Json]
    by_kind: dict[str, Json]
    inference: dict[int, float]
    unigram_entropy: float
    bigram_loss: float
    curve: list[Point]
    tuned: Tuned | None
    diagnosis: Json | None
    documents: Json = field(repr=False)


def read_result(arm: Arm, pretrained: RunFacts, run_dir: Path, tuned: RunFacts | None) -> ArmResult:
    """The result of an arm in `run_dir`, with its tuning where there is one. UserError for a stage that is missing."""
    evaluation = _read_of_step(run_dir / EVALUATION_FILE, "evaluate", run_dir, pretrained.step)
    documents = _read(documents_path(run_dir / EVALUATION_FILE), "evaluate", run_dir)
    config, overall = pretrained.config, evaluation["overall"]
    diagnosis = run_dir / f"{DIAGNOSTICS_NAME}.json"
    return ArmResult(
        name=arm.name,
        label=arm.label,
        value=arm.value,
        seed=arm.seed,
        reference=arm.reference,
        num_loops=config.model.num_loops,
        num_layers=config.model.num_layers,
        parameters=count_parameters(config.model).total,
        tokens=pretrained.newest.training.tokens,
        training_flops=pretrained.training_flops,
        training_seconds=pretrained.newest.training.kept_seconds,
        kv_cache_bytes=kv_cache_bytes(config.model, config.data.sequence_length),
        loss=loss_of_documents(documents),
        loop_losses=overall["loop_losses"],
        bits_per_byte=overall["bits_per_byte"],
        by_language=evaluation["by_language"],
        by_kind=evaluation["by_kind"],
        inference=_inference(run_dir, evaluation),
        unigram_entropy=evaluation["unigram_entropy"],
        bigram_loss=evaluation["bigram_loss"],
        curve=_curve(run_dir, pretrained),
        tuned=None if tuned is None else _tuned(tuned),
        diagnosis=_read_of_step(diagnosis, "diagnose", run_dir, pretrained.step) if diagnosis.exists() else None,
        documents=documents,
    )


def folders_of(folder: Path, arm: Arm, tuned: bool) -> tuple[Path, Path | None]:
    """Where an arm of the sweep in `folder` was pretrained, and tuned."""
    return folder / arm.name / PRETRAIN, folder / arm.name / FINETUNE if tuned else None


def loss_of_documents(table: Json) -> Estimate:
    """Of the last loop: mean over tokens, interval over documents."""
    found = estimate(table["losses"][-1], table["tokens"])
    assert found is not None, "an evaluation without documents is an error there"
    return found


def paired_difference(one: ArmResult, other: ArmResult, level: float) -> Estimate:
    """Loss of `one` minus that of `other`, document by document of the same ones: far less spread than either.

    level: of the interval.
    """
    a, b = (np.asarray(result.documents["losses"][-1]) for result in (one, other))
    assert one.documents["tokens"] == other.documents["tokens"], "matching compares the documents"
    found = estimate((a - b).tolist(), one.documents["tokens"], level)
    assert found is not None
    return found


def _read(path: Path, command: str, run_dir: Path) -> Json:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); run `loopcoder {command} {run_dir}` first"
        ) from error
    except ValueError as error:  # cut off by a full disk, say
        raise UserError(f"{path}: is damaged ({error}); run `loopcoder {command} {run_dir}` again") from error


def _read_of_step(path: Path, command: str, run_dir: Path, step: int) -> Json:
    """A file that speaks of the weights after `step`. UserError when it speaks of others."""
    content = _read(path, command, run_dir)
    if content["step"] != step:
        raise UserError(
            f"{path}: is of step {content['step']}, the run stands at {step}; run `loopcoder {command} {run_dir}` again"
        )
    return content


def _inference(run_dir: Path, evaluation: Json) -> dict[int, float]:
    """Loss by R at inference: loop r does not know R, so that the losses of one pass are those of every smaller R.

    Files of another step or of another number of tokens are left out: they are of other weights or documents.
    """
    losses, tokens = evaluation["overall"]["loop_losses"], evaluation["overall"]["supervised_tokens"]
    for path in run_dir.glob("evaluation_loops*.json"):
        if not path.stem.endswith("_documents"):
            content = _read(path, "evaluate", run_dir)
            alike = (content["step"], content["overall"]["supervised_tokens"]) == (evaluation["step"], tokens)
            if alike and content["num_loops"] > len(losses):
                losses = losses + content["overall"]["loop_losses"][len(losses) :]
    return dict(enumerate(losses, start=1))


def _curve(run_dir: Path, facts: RunFacts) -> list[Point]:
    """FLOPs grow with tokens: documents are drawn at random, so every stretch of training costs about the same."""
    per_token = facts.training_flops / facts.newest.training.tokens
    return [
        Point(tokens=record["tokens"], flops=per_token * record["tokens"], loss=record["loss"])
        for record in read_metrics(run_dir / METRICS_FILE, ["evaluation"])
    ]


def _tuned(facts: RunFacts) -> Tuned:
    evaluation = _read_of_step(facts.run_dir / EVALUATION_FILE, "evaluate", facts.run_dir, facts.step)
    conversations = evaluation["conversations"]["overall"]
    return Tuned(
        loss=conversations["loop_losses"][-1],
        tokens=conversations["supervised_tokens"],
        corpus_loss=evaluation["overall"]["loop_losses"][-1],
    )


def by_value(results: Sequence[ArmResult]) -> list[list[ArmResult]]:
    """Matched arms by value, in their order, the seeds of each together."""
    groups: dict[str, list[ArmResult]] = {}
    for result in results:
        if result.reference is None:
            groups.setdefault(result.label, []).append(result)
    return list(groups.values())
