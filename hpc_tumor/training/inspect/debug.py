"""One process in the foreground, a few batches, and what happens in them: layers, gradients, times, memory."""

from __future__ import annotations

from contextlib import nullcontext

from hpc_tumor.config import Experiment
from hpc_tumor.run_dir import RunDir
from hpc_tumor.training.distributed import init_distributed
from hpc_tumor.training.inspect.anomaly import anomalies_named
from hpc_tumor.training.inspect.network import inspect_batch, show
from hpc_tumor.training.inspect.overfit import overfit
from hpc_tumor.training.inspect.step_times import measured
from hpc_tumor.training.loop import explain_resource_errors, train_to_end
from hpc_tumor.training.setup import build_state
from hpc_tumor.training.state import TrainingState
from hpc_tumor.training.watch.memory import peak_memory_gb


def debug_run(experiment: Experiment, run: RunDir, overfit_steps: int | None = None, anomaly: bool = False) -> str:
    """Look at one batch layer by layer, then train as always; all in this process, where `breakpoint()` works.

    Rank variables of a surrounding job are of no account: this is always one process, on one GPU or the CPU.

    Args:
        overfit_steps: train on one batch over and over instead, at most so many steps, and leave no result.
        anomaly: end with the first value that is not finite, and name the layer that it comes from.

    Returns:
        How it ended: "finished", or "learned" where it had one batch to learn.

    Raises:
        TrainingError: as training does; one batch was not learned; or a value was not finite.
    """
    distributed = init_distributed(experiment.hardware.timeout_minutes, experiment.hardware.threads, alone=True)
    with explain_resource_errors(experiment, run, distributed):
        state = build_state(experiment, run, distributed)
        try:
            inspect_batch(state)
            with anomalies_named(state) if anomaly else nullcontext():
                if overfit_steps is None:
                    outcome = _train(state)
                else:
                    overfit(state, overfit_steps)
                    outcome = "learned"
        finally:
            if state.writer is not None:
                state.writer.close()
    show(f"memory     peak {peak_memory_gb(distributed.device):.2f} GB")
    return outcome


def _train(state: TrainingState) -> str:
    """Train and test as always, with the time that each part of a step takes."""
    show("")
    with measured(state) as times:
        outcome = train_to_end(state)
    show("")
    show("\n".join(times.table()))
    return outcome
