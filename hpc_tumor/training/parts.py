"""From a store and a split to the loaders of training, validation and test."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hpc_tumor.config import CLASSIFICATION_SIZE, Experiment
from hpc_tumor.data.feed.loader import Batch, BatchLoader, epoch_order
from hpc_tumor.data.feed.row_cache import Ranks, allocate_cache
from hpc_tumor.data.feed.samples import ImagePart, Part, SlicePart
from hpc_tumor.data.splits.splits import Split, middle_pairs, split_of
from hpc_tumor.data.store.store import Store
from hpc_tumor.errors import DataError
from hpc_tumor.training.distributed import Distributed
from hpc_tumor.training.losses import balanced_weights
from hpc_tumor.vocabulary import TUMOUR_LABELS

EVALUATION_BATCH = 32  # global; fits every network, and changes no score


@dataclass(frozen=True)
class Parts:
    """The data of one run.

    Attributes:
        image_size: (height, width) in pixels.
        classes: None for segmentation.
        kept: where the samples of a part stay between epochs, in words.
    """

    store: Store
    split: Split
    train: BatchLoader
    val: BatchLoader | None
    test: BatchLoader
    test_names: list[str]
    image_size: tuple[int, int]
    classes: list[str] | None
    kept: dict[str, str]

    def counts(self) -> dict[str, int]:
        """Cases (or images) of each part."""
        return {
            name: _cases(loader.part) if loader is not None else 0
            for name, loader in (("train", self.train), ("val", self.val), ("test", self.test))
        }

    def class_counts(self) -> dict[str, dict[str, int]] | None:
        """Images of each class in each part, by their names; None for segmentation."""
        if self.classes is None:
            return None
        counts = {}
        for name, loader in (("train", self.train), ("val", self.val), ("test", self.test)):
            labels = loader.part.classes.numpy() if loader is not None else np.empty(0, np.int64)  # type: ignore[attr-defined]
            counted = np.bincount(labels, minlength=len(self.classes))
            counts[name] = {label: int(count) for label, count in zip(self.classes, counted, strict=True)}
        return counts

    def first_batch(self, seed: int) -> Batch:
        """The batch that the first step of a run with this `seed` is made with."""
        return next(self.train.batches(epoch_order(len(self.train.part), seed, 0), limit=1))

    def describe(self) -> str:
        """The sizes of the parts, in words."""
        unit = "cases" if self.classes is None else "images"
        sizes = ", ".join(f"{count} {name}" for name, count in self.counts().items())
        slices = f"; {len(self.train.part)} slices to train on" if self.classes is None else ""
        leaks = "; this split leaks between its parts" if self.split.leaks else ""
        cavity = self.classes is None and len(self.store.labels) > TUMOUR_LABELS
        return f"{unit}: {sizes}{slices}{leaks}" + ("; resection cavities count as background" if cavity else "")


def make_parts(experiment: Experiment, distributed: Distributed, read_from: Path | None = None) -> Parts:
    """Open the store, split it, and make the loaders.

    Training takes the middle share of each case's slices, as published; validation and test take every slice of
    their patients, so that the scores are of whole volumes. The published split draws single slices for both.

    Args:
        read_from: a copy of the store, to be read in its place.

    Raises:
        DataError: the store cannot be opened, is of the other task, or is too small to split.
    """
    data = experiment.data
    store = Store.open(read_from or data.store)
    if store.task != experiment.task:
        raise DataError(
            f"{data.store} is a store for {store.task} ({store.dataset}), but {experiment.model.name} does"
            f" {experiment.task}: choose another store or another model."
        )
    split = split_of(experiment, store)
    parts: Sequence[Part]
    if experiment.task == "segmentation":
        parts, names, image_size = _slice_parts(experiment, store, split, distributed.device)
    else:
        parts, names, image_size = _image_parts(experiment, store, split, distributed.device)
    # Whole batches go to one rank: where training has to work through parts, so has this.
    evaluated = max(1, EVALUATION_BATCH // experiment.hardware.accumulate)
    sizes = (experiment.recipe.batch_size, evaluated, evaluated)
    train, val, test = (
        BatchLoader(parts[index], size, distributed.rank, distributed.world_size) for index, size in enumerate(sizes)
    )
    classes = list(store.classes) if experiment.task == "classification" else None
    kept: dict[str, str] = {}
    taken: Counter[str] = Counter()
    for name, loader in (("train", train), ("val", val)):
        if len(loader.part):
            kept[name] = _keep(experiment, loader.part, distributed, taken)
    return Parts(store, split, train, val if len(val.part) else None, test, names, image_size, classes, kept)


def class_weights(experiment: Experiment, parts: Parts, device: torch.device) -> Tensor | None:
    """Weight in the loss of each class, or of each label, as the recipe has them; None where all count alike."""
    wanted = experiment.recipe.class_weights
    if wanted is None:
        return None
    if wanted != "balanced":
        return torch.tensor(wanted, dtype=torch.float32, device=device)
    part = parts.train.part
    if isinstance(part, SlicePart):
        voxels = parts.store.label_counts[part.slices[:, 0], part.slices[:, 1]].sum(0, dtype=np.int64)
        counts = voxels[1:TUMOUR_LABELS]
    else:
        counts = np.bincount(part.classes.numpy(), minlength=len(parts.classes or []))  # type: ignore[attr-defined]
    return balanced_weights(torch.from_numpy(counts.astype(np.float64))).float().to(device)


def _keep(experiment: Experiment, part: Part, distributed: Distributed, taken: Counter[str]) -> str:
    """Give the part memory to stay in after its first pass, if there will be a second: where. `taken` grows by it."""
    data, rows = experiment.data, part.rows
    where = "none" if experiment.recipe.epochs == 1 or experiment.limit_batches else data.keep
    ranks = Ranks(distributed.rank, distributed.gather)
    rows.kept, words = allocate_cache(where, data.keep_gb, rows.like(), len(part), distributed.device, ranks, taken)
    if rows.kept:
        taken["gpu" if rows.kept.on_device else "host"] += sum(tensor.nbytes for tensor in rows.kept.tensors)
    return words


def _slice_parts(
    experiment: Experiment, store: Store, split: Split, device: torch.device
) -> tuple[list[SlicePart], list[str], tuple[int, int]]:
    size = experiment.data.image_size
    chosen = [_slices(store, cases, experiment.data.slices if part == 0 else 1.0)
              for part, cases in enumerate((split.train, split.val, split.test))]  # fmt: skip
    parts = [SlicePart(store, slices, device, size) for slices in chosen]
    names = [store.case_ids[case] for case in parts[2].cases]
    return parts, names, (size, size) if size else store.slice_shape


def _slices(store: Store, cases: np.ndarray, share: float) -> np.ndarray:
    """`(n, 2)` pairs of case and slice: those given, or the middle `share` of each of the given cases."""
    if cases.ndim == 2:
        return cases
    return middle_pairs(store, cases, share)


def _image_parts(
    experiment: Experiment, store: Store, split: Split, device: torch.device
) -> tuple[list[ImagePart], list[str], tuple[int, int]]:
    size = experiment.data.image_size or CLASSIFICATION_SIZE
    parts = [ImagePart(store, indices, device, size) for indices in (split.train, split.val, split.test)]
    return parts, [store.paths[index] for index in split.test], (size, size)


def _cases(part: Part) -> int:
    return len(part.cases) if isinstance(part, SlicePart) else len(part)
