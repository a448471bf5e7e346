"""What a recorded pipeline schedule costs, and what the formulas of docs/parallelism.md say it costs."""

from collections.abc import Sequence

from loopcoder_train.engines.megatron.pipeline import Pass


def live_pairs(num_loops: int, microbatches: int, stages: int, stage_index: int) -> int:
    """The most (loop, microbatch) pairs whose activations a stage holds at a time."""
    if num_loops == 1:
        return min(microbatches, stages - stage_index)
    return min(microbatches * num_loops, 2 * (stages - stage_index - 1) + (num_loops - 1) * stages + 1)


def peak_live_pairs(events: Sequence[Pass]) -> int:
    """The same, counted: forward passes begun whose backward pass has not."""
    live = peak = 0
    for event in events:
        live += -1 if event.backward else 1
        peak = max(peak, live)
    assert live == 0, "not every forward pass came back"
    return peak


def idle_share(by_stage: Sequence[Sequence[Pass]]) -> float:
    """Idle / useful time when every pass takes one unit, each stage keeps its recorded order, messages take no time."""
    stages, loops = len(by_stage), max(event.loop_number for event in by_stage[0])
    finished: dict[tuple[int, Pass], int] = {}
    clock, position = [0] * stages, [0] * stages
    while any(done < len(events) for done, events in zip(position, by_stage, strict=True)):
        moved = False
        for stage, events in enumerate(by_stage):
            while position[stage] < len(events):
                event = events[position[stage]]
                needed = _needed(event, stage, stages, loops)
                if needed is not None and needed not in finished:
                    break
                clock[stage] = max(clock[stage], finished.get(needed, 0)) + 1
                finished[stage, event] = clock[stage]
                position[stage] += 1
                moved = True
        assert moved, "the recorded order waits for itself"
    useful = len(by_stage[0])
    return (max(clock) - useful) / useful


def _needed(event: Pass, stage: int, stages: int, loops: int) -> tuple[int, Pass] | None:
    """(stage, event) whose message this pass waits for."""
    last, loop, microbatch = stages - 1, event.loop_number, event.microbatch
    if not event.backward:
        if stage > 0:
            return stage - 1, event
        return (last, Pass(False, loop - 1, microbatch)) if loop > 1 else None
    if stage < last:
        return stage + 1, event
    return (0, Pass(True, loop + 1, microbatch)) if loop < loops else (last, Pass(False, loop, microbatch))
