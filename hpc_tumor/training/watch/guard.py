"""Detect and report steps whose loss or gradients are not finite.

The optimizer skips such a step itself, so checking one step later, as on GPUs, is early enough.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hpc_tumor.console import log
from hpc_tumor.data.feed.loader import Share
from hpc_tumor.errors import DataError, TrainingError
from hpc_tumor.system import devices
from hpc_tumor.training.host_copy import copy_to_host
from hpc_tumor.training.state import TrainingState, UncheckedStep

_NAMED = 5  # cases in the message


def note_step(state: TrainingState, report: Tensor, share: Share) -> None:
    """Queue a step to be checked; see `step.compute_step` for its report."""
    state.unchecked.append(UncheckedStep(copy_to_host(report), share, state.progress.epoch))


def check_steps(state: TrainingState, totals: dict[str, Any], everything: bool = False) -> None:
    """Check the queued steps that are due, or all; subtract the samples of those not finite from `totals`.

    Raises TrainingError if more steps were not finite than the recipe allows.
    """
    # Checks lag by one step on a GPU, so as not to wait for it.
    behind = int(devices.is_gpu(state.distributed.device) and not everything)
    while len(state.unchecked) > behind:
        step = state.unchecked.popleft()
        broken, state.last_losses = step.report.wait().split([1, len(step.share.positions)])
        if broken.item() > 0:
            _skip(state, step, state.last_losses, totals)


def _skip(state: TrainingState, step: UncheckedStep, losses: Tensor, totals: dict[str, Any]) -> None:
    run, distributed, share = state.run, state.distributed, step.share
    totals["samples"] -= share.counted
    state.progress.skipped += 1
    skipped, allowed = state.progress.skipped, state.experiment.recipe.skip_nonfinite
    position = f"epoch {step.epoch + 1}, step {share.step + 1}"
    reason, names = _find_cause(state, share, losses)
    if skipped <= allowed:
        if distributed.is_main:
            log(f"{position} skipped ({skipped} of {allowed}): {reason} not finite; {names}")
            run.add_event("skipped", epoch=step.epoch + 1, step=share.step + 1, reason=reason, cases=names)
        return
    path = run.broken_batch(step.epoch + 1, share.step + 1, distributed.rank)
    saved = all(distributed.gather(_save_batch(state, share, losses, path)))
    kept = f"was saved in {path.parent}" if saved else "could not be saved: the disk is full or fails"
    after = f", after {allowed} skipped" if allowed else ""
    raise TrainingError(
        f"{reason} no longer finite at {position}{after} ({names}). The batch {kept}. Lower"
        " recipe.learning_rate, set recipe.clip_gradients=1, hardware.precision=float32 or recipe.skip_nonfinite=N."
    )


def _find_cause(state: TrainingState, share: Share, losses: Tensor) -> tuple[str, str]:
    """Return what was not finite, and in which cases, over all ranks."""
    part = state.parts.train.part
    broken = (~losses.isfinite()).nonzero().flatten().tolist() if share.counted else []
    broken_cases = [part.name(int(share.positions[index])) for index in broken]
    all_cases = [part.name(int(position)) for position in share.positions[: share.counted]]
    gathered = state.distributed.gather((broken_cases, all_cases))
    cases = [name for names, _ in gathered for name in names]
    reason = "the loss is" if cases else "the gradients are"
    cases = cases or [name for _, names in gathered for name in names]
    more = f" and {len(cases) - _NAMED} more" if len(cases) > _NAMED else ""
    return reason, f"{', '.join(cases[:_NAMED])}{more}"


def _save_batch(state: TrainingState, share: Share, losses: Tensor, path: Path) -> bool:
    part = state.parts.train.part
    names = [part.name(int(position)) for position in share.positions]
    contents: dict[str, Any] = {"cases": names, "losses": losses}
    if state.distributed.is_main:
        # Weights as before the broken step, but with batch norm statistics after it (on a GPU, after the next step).
        contents["model"] = state.network.state_dict()
    try:
        request = part.rows.request(share.positions)  # again: on a GPU, its memory may hold the next batch by now
        request.wait()
        contents["images"], contents["targets"] = part.deliver(request)
        torch.save(contents, path)
    except (DataError, OSError, RuntimeError):  # torch turns a failed write into a RuntimeError
        path.unlink(missing_ok=True)
        return False
    return True


def total_norm(parameters: list[torch.nn.Parameter]) -> Tensor:
    """Return the norm of all gradients together, on their device; not finite if one of them is not."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
