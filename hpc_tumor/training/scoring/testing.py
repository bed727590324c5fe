"""Final scores of a run: on whole volumes with surface distances, cleaned if the settings say so.

For images also the classes of nearest neighbours, a baseline without a network; see data/audit/memoriser.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from hpc_tumor.data.audit.images import BATCH, THUMBNAIL, Floats, shrink, unit_rows
from hpc_tumor.data.audit.memoriser import nearest
from hpc_tumor.data.feed.loader import BatchLoader
from hpc_tumor.data.store.store import Store
from hpc_tumor.training.distributed import Distributed
from hpc_tumor.training.parts import Parts
from hpc_tumor.training.scoring import metrics
from hpc_tumor.training.scoring.cleaning import Cleaning, choose_cleaning, histogram
from hpc_tumor.training.scoring.evaluate import Evaluation, evaluate
from hpc_tumor.training.scoring.surfaces import case_surfaces
from hpc_tumor.training.scoring.volumes import Watch
from hpc_tumor.training.state import TrainingState


@dataclass(frozen=True)
class Tested:
    """Final scores of the test part.

    Attributes:
        plain: scores of the network's predictions.
        final: cleaned if the settings say so, with surface scores; else `plain`.
        cleaning: thresholds chosen on the validation part; None without cleaning.
    """

    plain: Evaluation
    final: Evaluation
    cleaning: Cleaning | None = None


class StopError(Exception):
    """A stop was requested before scoring was complete; raised on all ranks together."""


def score_test_part(state: TrainingState, watch: Watch = Watch()) -> Tested:
    """Score the network's current weights on the test part. All ranks call this together."""

    def score(loader: BatchLoader) -> Evaluation:
        scored = evaluate(
            state.network, loader, state.spec, state.distributed, alive=watch.alive, final=True, volumes=True
        )
        watch.check_stop()
        return scored

    plain = score(state.parts.test)
    if plain.volumes is None or not plain.volumes.any_whole:  # images, or single slices
        plain = replace(plain, volumes=None)
        return Tested(plain, plain)
    cleaning = None
    if state.experiment.scoring.clean and state.parts.val is not None:
        val = score(state.parts.val)
        assert val.volumes is not None
        cleaning = choose_cleaning(val.volumes, len(val.counted), state.distributed, watch)
    final = score_volumes(plain, state.distributed, cleaning, watch)
    return Tested(replace(plain, volumes=None), replace(final, volumes=None), cleaning)


def score_volumes(
    plain: Evaluation, distributed: Distributed, cleaning: Cleaning | None = None, watch: Watch = Watch()
) -> Evaluation:
    """Add surface scores of the whole cases to `plain`, after `cleaning`; each case is measured on one rank."""
    assert plain.volumes is not None
    rows = len(plain.counted)
    surfaces = np.zeros((rows, len(metrics.MEMBERS), 2))
    details, whole = np.zeros_like(plain.details), np.zeros(rows, dtype=np.int64)
    for row, codes, spacing in plain.volumes.cases(distributed, watch):
        cleaned = cleaning(codes, float(np.prod(spacing))) if cleaning else codes
        surfaces[row] = case_surfaces(cleaned, spacing)
        details[row], whole[row] = histogram(cleaned), 1
    for array in (surfaces, details, whole):
        distributed.sum(torch.from_numpy(array))
    surfaces[whole == 0] = np.nan
    details = np.where((whole > 0)[:, None, None], details, plain.details)
    scores = metrics.segmentation_scores(details[plain.counted > 0], surfaces[plain.counted > 0])
    return replace(plain, scores={**scores, "loss": plain.scores["loss"]}, details=details, surfaces=surfaces)


@dataclass(frozen=True)
class Neighbour:
    """Nearest neighbours of the test images: `answer` are their classes, `known` whether a copy was trained or
    validated on."""

    answer: np.ndarray
    known: np.ndarray


def nearest_neighbour(parts: Parts, alive: Callable[[], None] = lambda: None) -> Neighbour:
    """Find the training or validation image nearest to each test image, by correlation of thumbnails.

    Raises DataError if an image is damaged.
    """
    store, split = parts.store, parts.split
    known = np.concatenate([split.train, split.val])
    neighbours, _ = nearest(_thumbnails(store, split.test, alive), _thumbnails(store, known, alive))
    return Neighbour(store.label[known[neighbours]], np.isin(store.group[split.test], store.group[known]))


def _thumbnails(store: Store, indices: NDArray[np.int64], alive: Callable[[], None]) -> Floats:
    """Return thumbnails as `(n, THUMBNAIL²)` rows of mean 0 and length 1."""
    rows = np.empty((len(indices), THUMBNAIL**2), np.float32)
    for start in range(0, len(indices), BATCH):
        batch = slice(start, start + BATCH)
        rows[batch] = unit_rows(shrink(store.read_images(indices[batch]).result(), THUMBNAIL))
        alive()
    return rows
