"""Predicted volumes for the tests, without a store or a network."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from hpc_tumor.training.distributed import Distributed
from hpc_tumor.training.scoring.cases import Case
from hpc_tumor.training.scoring.volumes import Volumes

BITS = np.array([0, 1, 2, 4], dtype=np.uint8)  # of one predicted label


def codes_of(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Return the codes of a volume of labels and of one of predicted labels."""
    return (truth * 8 + BITS[predicted]).astype(np.uint8)


def part_of(
    depths: Sequence[int], shape: tuple[int, int] = (16, 16), spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
) -> Any:
    """Replacement for a part of slices: cases of so many slices each, one after the other."""
    store = SimpleNamespace(
        shapes=np.array([(depth, *shape) for depth in depths]), slice_shape=shape, spacing=lambda _: spacing,
    )  # fmt: skip
    slices = np.array([(case, z) for case, depth in enumerate(depths) for z in range(depth)])
    return SimpleNamespace(store=store, slices=slices, cases=np.arange(len(depths)), case_of=slices[:, 0])


def cases_of(
    codes: Sequence[np.ndarray], distributed: Distributed = Distributed(), chunk: int = 5,
    without: Sequence[int] = (), **options: Any,
) -> list[Case]:  # fmt: skip
    """Return a rank's whole cases of `(Z, Y, X)` codes, predicted `chunk` slices at a time by each rank in turn.

    Slices in `without`, counted over all cases, are left out.
    """
    part, cases = part_of([len(one) for one in codes], codes[0].shape[1:], **options), []
    volumes, flat = Volumes(part, cases.append), np.concatenate(codes)
    for turn, start in enumerate(range(0, len(flat), chunk)):
        if turn % distributed.world_size == distributed.rank:
            positions = np.setdiff1d(np.arange(start, min(start + chunk, len(flat))), without)
            volumes.add(positions, torch.from_numpy(flat[positions]))
    volumes.share(distributed)
    return cases
