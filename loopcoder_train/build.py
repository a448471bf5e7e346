"""The composition root: every part of a training run is made here, put together, and handed to `fit`.

lock on run_dir -> process group -> what it reads (run_data.py) -> engine -> last good checkpoint, or another run's
weights -> hooks -> fit
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from loopcoder_train.checkpoint import find_checkpoint, set_aside
from loopcoder_train.checkpoint.discovery import Found
from loopcoder_train.config import EngineKind, RunConfig, UserError, WandbMode
from loopcoder_train.config.compare import differences, refuse_changes, result_options
from loopcoder_train.config.io import to_dict
from loopcoder_train.engines.engine import Engine
from loopcoder_train.evaluation.heldout import EvaluationInterrupted
from loopcoder_train.model.names import parameter_shapes
from loopcoder_train.run_data import RunData, open_run_data
from loopcoder_train.runtime import distributed
from loopcoder_train.runtime.determinism import seed_everything, use_deterministic_algorithms
from loopcoder_train.runtime.device import choose_device, set_threads
from loopcoder_train.runtime.failure import FailureRecorded
from loopcoder_train.runtime.heartbeat import HEART, enter
from loopcoder_train.runtime.lock import RunLock
from loopcoder_train.runtime.logging import setup_logging
from loopcoder_train.runtime.memory import keep_freed_memory
from loopcoder_train.runtime.mirror_owner import claim_mirror
from loopcoder_train.runtime.partners import Partners
from loopcoder_train.runtime.signals import StopCause, StopRequests
from loopcoder_train.runtime.start_clock import StartClock
from loopcoder_train.runtime.watchdog import Watchdog
from loopcoder_train.training.accounts import Accounts, open_accounts
from loopcoder_train.training.bad_steps import BadStepHook
from loopcoder_train.training.checkpoint_hook import CheckpointHook
from loopcoder_train.training.consumption import ConsumptionHook
from loopcoder_train.training.evaluate_hook import EvaluateHook
from loopcoder_train.training.first_weights import record_initial_values
from loopcoder_train.training.guard_hooks import corruption_hooks, slow_rank_hooks
from loopcoder_train.training.init_from import init_weights
from loopcoder_train.training.log_hook import LogHook
from loopcoder_train.training.loop import Hook, Run, fit
from loopcoder_train.training.metrics import METRICS_FILE, Metrics, MetricsWriter, newest_records
from loopcoder_train.training.mirror_hook import mirror_hooks
from loopcoder_train.training.progress import Console, logging_above, open_console
from loopcoder_train.training.resume import RunSnapshot, restore
from loopcoder_train.training.schedule import learning_rate
from loopcoder_train.training.sinks import open_sinks, stable_wandb_id
from loopcoder_train.training.start_hook import StartHook
from loopcoder_train.training.state import TrainingState
from loopcoder_train.training.step_history import StepHistory
from loopcoder_train.training.stop_deadline import deadline_of
from loopcoder_train.training.stop_hook import StopAgreement, StopHook
from loopcoder_train.training.telemetry_hook import TelemetryHook
from loopcoder_train.training.token_stream import build_loader, check_position


@dataclass(frozen=True, slots=True)
class Process:
    """This worker: which one of how many, and where it computes."""

    rank: int
    world_size: int
    device: torch.device


def pretrain(config: RunConfig, requests: StopRequests) -> StopCause | None:
    """Train as `config` says, from the last good checkpoint of its run_dir or from step 0, unless asked to stop.

    Returns what made the run stop before it was done; None when it is done, or paused where its options say.
    Raises UserError or DataError (one line for the person who started the run) for whatever they can mend.
    """
    with ExitStack() as stack:
        clock = stack.enter_context(start_clock())
        process = stack.enter_context(worker_process(config, requests))
        console = open_console(process.rank)
        stack.enter_context(logging_above(console))
        enter("opening the corpus", part="corpus")
        data = stack.enter_context(open_run_data(config, process.rank))
        stream = data.stream
        engine = build_engine(config, process.device)
        snapshot = resume(config, engine, process, console)
        state = snapshot.training if snapshot else TrainingState()
        origin = None
        if snapshot:
            check_position(stream, snapshot.stream, state)
        else:
            enter("setting the first weights", part="load_checkpoint")
            origin = init_weights(config, engine, data.tokenizer_hash)
            for note in (*data.notes, *(origin.notes if origin else ())):
                console.note(note)
        enter("opening the records", part="records")
        accounts = accounts_of_attempt(config, process, state, clock)
        metrics = stack.enter_context(open_metrics(config, process, snapshot))
        if not snapshot and not origin:
            record_initial_values(engine, parameter_shapes(config.model), metrics)
        if origin:
            said = {"checkpoint": str(origin.checkpoint), "checkpoint_step": origin.step, "commit": origin.commit}
            metrics.event("weights_from", 0, "; ".join(origin.notes), **said)
        ranks = {"data_parallel_rank": engine.data_parallel_rank, "data_parallel_size": engine.data_parallel_size}
        steps_left = max(0, config.training.last_step - state.step)
        loader = stack.enter_context(build_loader(config, stream, state.batches, steps_left, **ranks))
        run = Run(
            run_dir=Path(config.run_dir),
            engine=engine,
            data=loader,
            learning_rate=partial(
                learning_rate,
                total_tokens=config.total_tokens,
                optimizer=config.optimizer,
                schedule=config.schedule,
            ),
            num_steps=config.training.num_steps,
            batch_tokens=stream.batch_tokens,
            metrics=metrics,
            console=console,
            state=state,
            history=restored_history(config, snapshot),
            stop_after_step=config.training.stop_after_step,
            accounts=accounts,
        )
        if state.step >= run.last_step:
            console.note(f"nothing left to do: training.num_steps or stop_after_step is {run.last_step}")
        agreement = build_agreement(config, requests, engine, process)
        stop = StopHook(agreement)
        hooks = build_hooks(config, data, engine, process, console, snapshot, agreement)
        fit(run, [StartHook(clock), *hooks, stop])
        console.note(f"{config.run_dir}: step {run.state.step} of {run.num_steps}, {run.state.tokens:,} tokens trained")
        return stop.cause_of_the_end(run)


@contextmanager
def start_clock() -> Iterator[StartClock]:
    """The clock of this process's start; one that begins here where nobody started one, and no longer than this run."""
    clock = HEART.clock = HEART.clock or StartClock("device")
    try:
        yield clock
    finally:
        HEART.clock = None


@contextmanager
def worker_process(config: RunConfig, requests: StopRequests) -> Iterator[Process]:
    """Threads, logging, device, process group, and on rank 0 the lock of the run_dir."""
    enter("the start of the device", part="device")
    rank = distributed.rank()
    setup_logging(rank)
    device = choose_device(config.training.device, distributed.local_rank())
    use_deterministic_algorithms(config.training.deterministic, device.type)
    set_threads(config.training.num_threads, distributed.local_world_size())
    if device.type == "cpu":
        keep_freed_memory()
    seed_everything(config.seed, rank)
    hang_timeout = config.guards.hang_timeout_seconds
    with ExitStack() as stack:
        watchdog = None if hang_timeout is None else stack.enter_context(Watchdog(hang_timeout))
        if rank == 0:
            stack.enter_context(RunLock(config.run_dir))
            if (mirror := config.checkpoint.mirror_of(config.run_dir)) is not None:
                claim_mirror(mirror, Path(config.run_dir))
        enter("the rendezvous", part="rendezvous")
        distributed.init_process_group(device, distributed.timeout_seconds(hang_timeout))
        if watchdog is not None:
            watchdog.meet(Partners.of_this_job(rank, distributed.world_size()))
        dist.barrier()  # nobody reads or writes run_dir before rank 0 holds it
        with FailureRecorded():  # before the process group is left: the partners' lost connections are not the cause
            yield Process(rank, distributed.world_size(), device)
        # The launcher ends whoever is left when one process ends with another code than 0, as those do that were asked
        # to stop: all end together, and nobody minds being ended.
        requests.finish()
        dist.barrier()
        # After an error nobody waits for partners: leaving the group may need them, and they may hang in a collective.
        distributed.destroy_process_group()


def build_engine(config: RunConfig, device: torch.device) -> Engine:
    """The engine that `config.engine` names. Megatron and DeepSpeed are imported only when asked for."""
    enter("importing the engine", part="imports")
    if config.engine is EngineKind.plain:
        from loopcoder_train.engines.plain import PlainEngine

        enter("building the engine", part="engine")
        return PlainEngine(config, device)
    if config.engine is EngineKind.deepspeed:
        from loopcoder_train.engines.deepspeed import ZeroEngine

        enter("building the engine", part="engine")
        return ZeroEngine(config, device)
    from loopcoder_train.engines.megatron import MegatronEngine

    enter("building the engine", part="engine")
    return MegatronEngine(config, device)


def resume(config: RunConfig, engine: Engine, process: Process, console: Console) -> RunSnapshot | None:
    """Fill the engine from the newest good checkpoint; None, and untouched weights, when the run has none.

    Raises UserError when every checkpoint that once was good is damaged: starting over would hide the loss.
    """
    enter("finding the checkpoint", part="find_checkpoint")
    found = find_checkpoint(Path(config.run_dir))
    for reason in found.rejected:
        console.note(f"WARNING: checkpoint passed over: {reason}")
    found = look_in_mirror(config, found, console)
    if found.checkpoint is None:
        if found.damaged:
            raise UserError(
                f"run_dir={config.run_dir}: no good checkpoint is left ({found.rejected[0]}); bring one back, or start "
                "over with fresh=true"
            )
        return None
    changes = check_options(config, RunSnapshot.from_json(found.checkpoint.state))
    enter("loading the checkpoint", part="load_checkpoint")
    snapshot = restore(
        found.checkpoint, engine, rank=process.rank, world_size=process.world_size, device=process.device
    )
    for option, before, after in changes:
        console.note(f"WARNING: from step {snapshot.training.step + 1} on {option} is {after}, it was {before}")
        change = {"step": snapshot.training.step, "option": option, "before": before, "after": after}
        snapshot.training.option_changes.append(change)
    if found.rejected:
        console.note(f"WARNING: falling back to the previous good checkpoint, step {snapshot.training.step}")
        leave_abandoned_future(config, snapshot.training.step, process, console)
    console.note(f"resuming after step {snapshot.training.step} of {config.training.num_steps}")
    return snapshot


def look_in_mirror(config: RunConfig, found: Found, console: Console) -> Found:
    """What `found` in run_dir and the mirror have together: the mirror's newest good one where run_dir has none as new.

    Collective. What run_dir has is never verified twice, and the mirror's only as far as they are newer.
    """
    mirror = config.checkpoint.mirror_of(config.run_dir)
    if mirror is None:
        return found
    own = found.checkpoint
    there = find_checkpoint(mirror, newer_than=-1 if own is None else own.step)
    for reason in there.rejected:
        console.note(f"WARNING: checkpoint of the mirror passed over: {reason}")
    if there.checkpoint is not None:
        has = "no good checkpoint" if own is None else f"none newer than step {own.step}"
        console.note(f"WARNING: run_dir={config.run_dir} has {has}; resuming from its mirror, {there.checkpoint.path}")
    return Found(there.checkpoint or own, found.rejected + there.rejected, found.damaged or there.damaged)


def check_options(config: RunConfig, snapshot: RunSnapshot) -> list[tuple[str, Any, Any]]:
    """Changes, accepted ones, of options that change the result since the checkpoint: (option, before, after).

    The launcher compares configurations too, but a worker may be started by hand with an edited run.yaml.
    """
    changes = differences(snapshot.options, result_options(config))
    refuse_changes(f"run_dir={config.run_dir}", changes, accepted=config.accept_config_changes)
    return changes


def leave_abandoned_future(config: RunConfig, step: int, process: Process, console: Console) -> None:
    """Move checkpoints newer than `step` aside: a later start must not jump back onto a history that was left."""
    if process.rank == 0:
        try:
            mirror = config.checkpoint.mirror_of(config.run_dir)
            for folder in (Path(config.run_dir), *([] if mirror is None else [mirror])):
                if (aside := set_aside(folder, after_step=step)) is not None:
                    console.note(f"newer checkpoints were moved to {aside}")
        except OSError as error:
            raise UserError(
                f"run_dir={config.run_dir}: checkpoints cannot be moved ({error.strerror}: {error.filename})"
            ) from error
    dist.barrier()


def restored_history(config: RunConfig, snapshot: RunSnapshot | None) -> StepHistory:
    """What the checkpoint knows about the last steps, or nothing yet."""
    length = config.guards.history_steps
    return StepHistory.from_json(snapshot.history, length) if snapshot else StepHistory(length)


def accounts_of_attempt(config: RunConfig, process: Process, state: TrainingState, clock: StartClock) -> Accounts:
    """What was spent before this attempt; called before it writes its first record. Rank 0's are told and saved."""
    newest = newest_records(Path(config.run_dir) / METRICS_FILE) if process.rank == 0 else ()
    accounts = open_accounts(state, newest, clock)
    state.first_began, state.running_seconds = accounts.first_began, accounts.running_seconds
    return accounts


def open_metrics(config: RunConfig, process: Process, snapshot: RunSnapshot | None) -> Metrics:
    """`metrics.jsonl` and the asked-for sinks on rank 0; nothing elsewhere."""
    if process.rank != 0:
        return Metrics()
    run_dir = Path(config.run_dir)
    sinks = open_sinks(
        config.logging,
        run_dir,
        wandb_id=logger_run_ids(config, snapshot).get("wandb"),
        resumed_step=snapshot.training.step if snapshot else 0,
        run_config=to_dict(config),
    )
    previous = snapshot.training.attempt if snapshot else 0
    writer = MetricsWriter(run_dir / METRICS_FILE, sinks=sinks, previous_attempt=previous)
    if snapshot:
        snapshot.training.attempt = writer.attempt
    return writer


def logger_run_ids(config: RunConfig, snapshot: RunSnapshot | None) -> dict[str, str]:
    """Ids under which loggers know this run, the same over all attempts. Rank 0 only."""
    if config.logging.wandb is WandbMode.disabled:
        return dict(snapshot.loggers) if snapshot else {}
    saved = snapshot.loggers.get("wandb") if snapshot else None
    return {"wandb": stable_wandb_id(Path(config.run_dir), saved)}


def build_agreement(config: RunConfig, requests: StopRequests, engine: Engine, process: Process) -> StopAgreement:
    """Who asks whether to stop; the clock that counts is rank 0's."""
    limit = config.training.time_limit_minutes
    deadline = deadline_of(requests.started, limit, os.environ) if process.rank == 0 else None
    return StopAgreement(requests, engine, process.rank, deadline)


def build_hooks(
    config: RunConfig,
    data: RunData,
    engine: Engine,
    process: Process,
    console: Console,
    snapshot: RunSnapshot | None,
    agreement: StopAgreement,
) -> list[Hook]:
    """What happens around a step, in order: judge, record, measure, save."""
    stream = data.stream

    def held_out_metrics() -> dict[str, float] | None:
        try:
            return data.evaluate(engine, agreement.reached).metrics()
        except EvaluationInterrupted:
            return None

    saving = CheckpointHook(
        config.checkpoint,
        process.device,
        stream_state=stream.state,
        options=result_options(config),
        logger_run_ids=logger_run_ids(config, snapshot) if process.rank == 0 else {},
    )
    return [
        BadStepHook(
            config.guards,
            last_saved=saving.last_saved,
            load=lambda: resume(config, engine, process, console),
            segment_of=stream.segment_number,
        ),
        ConsumptionHook(stream.names_of, config.model.window_left),
        LogHook(config.model, process.device, every_steps=config.logging.every_steps, kinds=stream.kinds),
        *slow_rank_hooks(config, process.world_size),
        EvaluateHook(held_out_metrics, every_steps=config.evaluation.every_steps),
        TelemetryHook(data.probe(), every_steps=config.telemetry.every_steps),
        *corruption_hooks(config, process.device),
        saving,
        *mirror_hooks(config, process.rank, saving),
    ]
