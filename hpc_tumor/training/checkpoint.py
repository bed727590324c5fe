"""Checkpoints: written whole or not at all, read as weights only, and enough to go on exactly where a run stopped."""

from __future__ import annotations

import dataclasses
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpc_tumor import atomic
from hpc_tumor.errors import DataError, TrainingError

_FORMAT = 1


@dataclass
class TrainState:
    """Where training stands. `epoch` epochs are complete; `step` steps of the next one are done.

    Attributes:
        totals: what each rank has added up of the epoch under way: loss, right answers, counts.
        best_score: of the best epoch so far, larger is better; its loss breaks ties.
        seconds: training time so far, over all starts.
        restarts: how often the run went on from a checkpoint.
    """

    epoch: int = 0
    step: int = 0
    totals: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = 0
    best_score: float | None = None
    best_loss: float | None = None
    seconds: float = 0.0
    samples: int = 0
    restarts: int = 0


def random_state(device: torch.device) -> dict[str, Any]:
    """The state of every random generator this rank uses."""
    kind, keys, *rest = np.random.get_state()
    version, internal, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "python": [version, list(internal), gauss],
    }


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Put every random generator of this rank back to `state`."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))


def save_checkpoint(path: Path, state: TrainState, identity: dict[str, Any], **parts: Any) -> None:
    """Write a checkpoint: `parts` are state dictionaries; `identity` is what a resume must agree with.

    Raises:
        TrainingError: the disk or the quota is full; the checkpoint that was there stays.
    """
    try:
        with atomic.atomic_file(path) as file:
            torch.save({"format": _FORMAT, "state": dataclasses.asdict(state), "identity": identity, **parts}, file)
    except (OSError, RuntimeError) as error:  # torch turns a failed write into a RuntimeError of its own
        cause = error if isinstance(error, OSError) else error.__context__
        if isinstance(cause, OSError) and atomic.is_disk_full(cause):
            raise TrainingError(
                f"no room left to write {path}: free some space or quota, then `hpc-tumor resume` the run."
            ) from error
        raise


def load_checkpoint(path: Path, device: torch.device, identity: dict[str, Any] | None = None) -> dict[str, Any]:
    """What `save_checkpoint` wrote, with `state` as a TrainState. Nothing in the file is executed.

    Raises:
        DataError: the file is damaged, of another format, or of a run with other data or another network.
    """
    try:
        contents = torch.load(path, map_location=device, weights_only=True, mmap=False)
        found, state = contents["format"], TrainState(**contents["state"])
    except Exception as error:  # a damaged archive fails in many ways, all of which mean the same here
        raise DataError(
            f"{path} is not a checkpoint that can be read ({type(error).__name__}): it is damaged."
            " Remove it to start this run again from its first epoch."
        ) from error
    if found != _FORMAT:
        raise DataError(f"{path} has checkpoint format {found}; this version reads {_FORMAT}. Update hpc-tumor.")
    for key, wanted in (identity or {}).items():
        was = contents["identity"].get(key)
        if was != wanted:
            raise DataError(
                f"{path} was made with {key} {was}, but now it is {wanted}:"
                " going on would mix two experiments. Submit a new run."
            )
    return {**contents, "state": state}
