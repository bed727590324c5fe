"""The final scores of a run: on whole volumes, with distances between surfaces, cleaned where that was asked for.

Of images also the answers of the nearest neighbour, which needs no network: one that scores no better has shown
nothing; see data/audit/memoriser.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from hpc_tumor.data.audit.images import BATCH, THUMBNAIL, Floats, shrink, unit_rows
from hpc_tumor.data.audit.memoriser import nearest
from hpc_tumor.data.store.store import Store
from hpc_tumor.training.distributed import Distributed
from hpc_tumor.training.parts import Parts
from hpc_tumor.training.scoring import metrics
from hpc_tumor.training.scoring.cleaning import Cleaning, choose_cleaning, histogram
from hpc_tumor.training.scoring.evaluate import Evaluation
from hpc_tumor.training.scoring.surfaces import case_surfaces
from hpc_tumor.training.scoring.volumes import Watch

if TYPE_CHECKING:
    from hpc_tumor.training.working_set import Setup


@dataclass(frozen=True)
class Tested:
    """Final scores of the test part.

    Attributes:
        plain: as the network predicts.
        final: cleaned, where that was asked for, and with surface scores; else `plain`.
        cleaning: the thresholds that validation chose; None where nothing was to be cleaned.
    """

    plain: Evaluation
    final: Evaluation
    cleaning: Cleaning | None = None


class StopError(Exception):
    """A stop was asked for before all was scored; raised on all ranks together."""


def score_test_part(setup: Setup, watch: Watch = Watch()) -> Tested:
    """Score the weights that are in the network on the test part. All ranks call this together."""
    plain = setup.evaluate_as_is(setup.parts.test, watch.alive, final=True, volumes=True)
    watch.look()
    if plain.volumes is None or not plain.volumes.any_whole:  # images, or single slices
        plain = replace(plain, volumes=None)
        return Tested(plain, plain)
    cleaning = None
    if setup.experiment.scoring.clean and setup.val is not None:
        val = setup.evaluate_as_is(setup.val, watch.alive, final=True, volumes=True)
        watch.look()
        assert val.volumes is not None
        cleaning = choose_cleaning(val.volumes, len(val.counted), setup.distributed, watch)
    final = score_volumes(plain, setup.distributed, cleaning, watch)
    return Tested(replace(plain, volumes=None), replace(final, volumes=None), cleaning)


def score_volumes(
    plain: Evaluation, distributed: Distributed, cleaning: Cleaning | None = None, watch: Watch = Watch()
) -> Evaluation:
    """`plain` with the surface scores of its whole cases, each measured on one rank, after `cleaning` them."""
    assert plain.volumes is not None
    rows = len(plain.counted)
    surfaces = np.zeros((rows, len(metrics.MEMBERS), 2))
    details, whole = np.zeros_like(plain.details), np.zeros(rows, dtype=np.int64)
    for row, codes, spacing in plain.volumes.cases(distributed, watch):
        cleaned = cleaning(codes, float(np.prod(spacing))) if cleaning else codes
        surfaces[row] = case_surfaces(cleaned, spacing)
        details[row], whole[row] = histogram(cleaned), 1
    surfaces, details, whole = (
        distributed.sum(torch.from_numpy(array).to(distributed.device)).cpu().numpy()
        for array in (surfaces, details, whole)
    )
    surfaces[whole == 0] = np.nan
    details = np.where((whole > 0)[:, None, None], details, plain.details)
    scores = metrics.segmentation_scores(details[plain.counted > 0], surfaces[plain.counted > 0])
    return replace(plain, scores={**scores, "loss": plain.scores["loss"]}, details=details, surfaces=surfaces)


@dataclass(frozen=True)
class Neighbour:
    """Of each test image, in the order of the part: `answer` is a class, `known` whether a copy of it is in training
    or validation."""

    answer: np.ndarray
    known: np.ndarray


def nearest_neighbour(parts: Parts, alive: Callable[[], None] = lambda: None) -> Neighbour:
    """The nearest of the training and validation images of each test image, by correlation of small copies.

    Reads the images of the parts and no others. Raises DataError where one of them is damaged.
    """
    store, split = parts.store, parts.split
    known = np.concatenate([split.train, split.val])
    place, _ = nearest(_thumbnails(store, split.test, alive), _thumbnails(store, known, alive))
    return Neighbour(store.label[known[place]], np.isin(store.group[split.test], store.group[known]))


def _thumbnails(store: Store, chosen: NDArray[np.int64], alive: Callable[[], None]) -> Floats:
    """`(n, THUMBNAIL²)` rows of mean 0 and length 1."""
    rows = np.empty((len(chosen), THUMBNAIL**2), np.float32)
    for start in range(0, len(chosen), BATCH):
        some = slice(start, start + BATCH)
        rows[some] = unit_rows(shrink(store.read_images(chosen[some]).result(), THUMBNAIL))
        alive()
    return rows
