"""Build the loaders of the training, validation and test parts from a store and its split."""

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

EVALUATION_BATCH = 32  # samples per batch; fits every network, does not affect scores


@dataclass(frozen=True)
class Parts:
    """The data of one run.

    Attributes:
        image_size: (height, width) in pixels.
        classes: None for segmentation.
        locations: description, by part, of where samples are cached between epochs.
    """

    store: Store
    split: Split
    train: BatchLoader
    val: BatchLoader | None
    test: BatchLoader
    test_names: list[str]
    image_size: tuple[int, int]
    classes: list[str] | None
    locations: dict[str, str]

    def counts(self) -> dict[str, int]:
        """Count the cases (or images) of each part."""
        return {
            name: _cases(loader.part) if loader is not None else 0
            for name, loader in (("train", self.train), ("val", self.val), ("test", self.test))
        }

    def class_counts(self) -> dict[str, dict[str, int]] | None:
        """Count the images of each class in each part; None for segmentation."""
        if self.classes is None:
            return None
        counts = {}
        for name, loader in (("train", self.train), ("val", self.val), ("test", self.test)):
            labels = loader.part.classes.numpy() if loader is not None else np.empty(0, np.int64)  # type: ignore[attr-defined]
            counted = np.bincount(labels, minlength=len(self.classes))
            counts[name] = {label: int(count) for label, count in zip(self.classes, counted, strict=True)}
        return counts

    def first_batch(self, seed: int) -> Batch:
        """Return the batch of the first step of a run with this `seed`."""
        return next(self.train.batches(epoch_order(len(self.train.part), seed, 0), limit=1))

    def describe(self) -> str:
        """Describe the sizes of the parts for the log."""
        unit = "cases" if self.classes is None else "images"
        sizes = ", ".join(f"{count} {name}" for name, count in self.counts().items())
        slices = f"; {len(self.train.part)} slices to train on" if self.classes is None else ""
        leaks = "; this split leaks between its parts" if self.split.leaks else ""
        cavity = self.classes is None and len(self.store.labels) > TUMOUR_LABELS
        return f"{unit}: {sizes}{slices}{leaks}" + ("; resection cavities count as background" if cavity else "")


def make_parts(experiment: Experiment, distributed: Distributed, read_from: Path | None = None) -> Parts:
    """Open the store, split it, and make the loaders.

    Training uses the middle share of each case's slices, as published; validation and test use every slice of
    their patients, so that scores are of whole volumes. The published split draws single slices for all parts.

    Args:
        read_from: copy of the store to read instead.

    Raises:
        DataError: the store cannot be opened, is of the other task, or is too small to split.
    """
    data = experiment.data
    store = Store.open(read_from or data.store)
    if store.task != experiment.task:
        raise DataError(
            f"{data.store} is a store for {store.task} ({store.dataset}), but {experiment.model.name} is for"
            f" {experiment.task}: choose another store or another model."
        )
    split = split_of(experiment, store)
    parts: Sequence[Part]
    if experiment.task == "segmentation":
        parts, names, image_size = _slice_parts(experiment, store, split, distributed.device)
    else:
        parts, names, image_size = _image_parts(experiment, store, split, distributed.device)
    # A whole batch is evaluated on one rank, so it must shrink as training's micro-batches do.
    evaluated = max(1, EVALUATION_BATCH // experiment.hardware.accumulate)
    sizes = (experiment.recipe.batch_size, evaluated, evaluated)
    train, val, test = (
        BatchLoader(parts[index], size, distributed.rank, distributed.world_size) for index, size in enumerate(sizes)
    )
    classes = list(store.classes) if experiment.task == "classification" else None
    locations: dict[str, str] = {}
    taken: Counter[str] = Counter()
    for name, loader in (("train", train), ("val", val)):
        if len(loader.part):
            locations[name] = _cache_rows(experiment, loader.part, distributed, taken)
    return Parts(store, split, train, val if len(val.part) else None, test, names, image_size, classes, locations)


def class_weights(experiment: Experiment, parts: Parts, device: torch.device) -> Tensor | None:
    """Return the recipe's loss weight of each class or label; None if all weigh the same."""
    weights = experiment.recipe.class_weights
    if weights is None:
        return None
    if weights != "balanced":
        return torch.tensor(weights, dtype=torch.float32, device=device)
    part = parts.train.part
    if isinstance(part, SlicePart):
        voxels = parts.store.label_counts[part.slices[:, 0], part.slices[:, 1]].sum(0, dtype=np.int64)
        counts = voxels[1:TUMOUR_LABELS]
    else:
        counts = np.bincount(part.classes.numpy(), minlength=len(parts.classes or []))  # type: ignore[attr-defined]
    return balanced_weights(torch.from_numpy(counts.astype(np.float64))).float().to(device)


def _cache_rows(experiment: Experiment, part: Part, distributed: Distributed, taken: Counter[str]) -> str:
    """Cache the part's samples from its first pass on, if there is a second; return where. Adds to `taken`."""
    data, rows = experiment.data, part.rows
    where = "none" if experiment.recipe.epochs == 1 or experiment.limit_batches else data.keep
    ranks = Ranks(distributed.rank, distributed.gather)
    rows.kept, description = allocate_cache(
        where, data.keep_gb, rows.like(), len(part), distributed.device, ranks, taken
    )
    if rows.kept:
        taken["gpu" if rows.kept.on_device else "host"] += sum(tensor.nbytes for tensor in rows.kept.tensors)
    return description


def _slice_parts(
    experiment: Experiment, store: Store, split: Split, device: torch.device
) -> tuple[list[SlicePart], list[str], tuple[int, int]]:
    size = experiment.data.image_size
    parts = []
    for cases, share in ((split.train, experiment.data.slices), (split.val, 1.0), (split.test, 1.0)):
        pairs = cases if cases.ndim == 2 else middle_pairs(store, cases, share)  # the published split has pairs
        parts.append(SlicePart(store, pairs, device, size))
    names = [store.case_ids[case] for case in parts[2].cases]
    return parts, names, (size, size) if size else store.slice_shape


def _image_parts(
    experiment: Experiment, store: Store, split: Split, device: torch.device
) -> tuple[list[ImagePart], list[str], tuple[int, int]]:
    size = experiment.data.image_size or CLASSIFICATION_SIZE
    parts = [ImagePart(store, indices, device, size) for indices in (split.train, split.val, split.test)]
    return parts, [store.paths[index] for index in split.test], (size, size)


def _cases(part: Part) -> int:
    return len(part.cases) if isinstance(part, SlicePart) else len(part)
