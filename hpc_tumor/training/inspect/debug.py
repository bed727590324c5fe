"""Debug a run in one process in the foreground: layers, gradients, times and memory of a few batches."""

from __future__ import annotations

from contextlib import nullcontext

from hpc_tumor.config import Experiment
from hpc_tumor.run_dir import RunDir
from hpc_tumor.training.distributed import init_distributed
from hpc_tumor.training.inspect.anomaly import detect_anomalies
from hpc_tumor.training.inspect.network import inspect_batch, show
from hpc_tumor.training.inspect.overfit import overfit
from hpc_tumor.training.inspect.step_times import time_phases
from hpc_tumor.training.loop import explain_resource_errors, train_to_end
from hpc_tumor.training.setup import build_state
from hpc_tumor.training.state import TrainingState
from hpc_tumor.training.watch.memory import peak_memory_gb


def debug_run(experiment: Experiment, run: RunDir, overfit_steps: int | None = None, anomaly: bool = False) -> str:
    """Inspect one batch layer by layer, then train as usual, all in this process, where `breakpoint()` works.

    Ignores rank variables of a surrounding job: always one process, on one GPU or the CPU.

    Args:
        overfit_steps: instead train on one batch repeatedly, for at most this many steps, without a result.
        anomaly: stop at the first value that is not finite, and name its layer.

    Returns:
        "finished", "stopped", or "learned" after overfitting.

    Raises:
        TrainingError: as in training; one batch was not learned; or a value was not finite.
    """
    distributed = init_distributed(experiment.hardware.timeout_minutes, experiment.hardware.threads, alone=True)
    with explain_resource_errors(experiment, run, distributed):
        state = build_state(experiment, run, distributed)
        try:
            inspect_batch(state)
            with detect_anomalies(state) if anomaly else nullcontext():
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
    """Train and test as usual, timing the phases of each step."""
    show("")
    with time_phases(state) as times:
        outcome = train_to_end(state)
    show("")
    show("\n".join(times.table()))
    return outcome
