"""Training and validation cases of a run, identified by id and content.

A run stores them in its run directory, since the store may have changed or be gone at prediction.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_tumor.data.contrast import NUMBERS
from hpc_tumor.data.splits.near_duplicates import SIDE
from hpc_tumor.data.splits.sketch import SIDE as CELLS
from hpc_tumor.data.splits.split_file import Split
from hpc_tumor.data.store.store import Store
from hpc_tumor.system.npz import read_arrays, write_arrays
from hpc_tumor.vocabulary import MODALITIES

FORMAT = "hpc-tumor known cases 1"
TRAINED, VALIDATED = "trained on", "validated on"
_MOST_ALL = 2**29  # bytes of all arrays; 7,000 images take 17 MB, 2,000 patients 35 MB
_MOST_FILE = _MOST_ALL + 2**20  # incompressible data grows slightly
_HEADERS = 2**16  # most bytes of the archive besides its arrays
_LEFT_OUT = ("sketches", "heads", "thumbnails", "digests")  # dropped in this order if there are too many cases
# Kind and shape of each array after the first axis (cases); `other_ids` is not listed, since its length differs.
_KINDS: dict[str, tuple[str, tuple[int, ...]]] = {
    "ids": ("U", ()), "trained": ("b", ()), "digests": ("U", ()), "thumbnails": ("u", (SIDE, SIDE)),
    "heads": ("u", (SIDE, SIDE)), "patients": ("U", ()),
    "sketches": ("i", (len(MODALITIES), CELLS, CELLS, CELLS)), "spacing": ("f", (3,)), "shape": ("i", (3,)),
    "brain_ml": ("f", ()), "contrast": ("f", (NUMBERS,)),
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class KnownCases:
    """Training cases of a store, followed by its validation cases; data that is not stored is None.

    Attributes:
        ids: `(n,)` ids of cases, or paths of images.
        trained: `(n,)` bool: True for training, False for validation.
        digests: `(n,)` SHA-256 in hexadecimal of each image's decoded pixels, or of each patient's scans.
        thumbnails: `(n, 32, 32)` uint8, used to find near copies of images.
        heads: `(n, 32, 32)` uint8, the same of images cropped to the head.
        patients: `(n,)` patient of each image, "" if unknown.
        sketches: `(n, 4, 16, 16, 16)` int8, used to find copies of patients' scans.
        other_ids, other_of: `(m,)` ids of patients in other editions, and the number of each id's case.
        spacing: `(n, 3)` voxel size along z, y, x in mm.
        shape: `(n, 3)` voxels along z, y, x.
        brain_ml: `(n,)` volume of the brain.
        contrast: `(n, 14)`, see `data.contrast`.
    """

    ids: NDArray[np.str_]
    trained: NDArray[np.bool_]
    digests: NDArray[np.str_] | None = None
    thumbnails: NDArray[np.uint8] | None = None
    heads: NDArray[np.uint8] | None = None
    patients: NDArray[np.str_] | None = None
    sketches: NDArray[np.int8] | None = None
    other_ids: NDArray[np.str_] | None = None
    other_of: NDArray[np.int64] | None = None
    spacing: NDArray[np.float64] | None = None
    shape: NDArray[np.int64] | None = None
    brain_ml: NDArray[np.float64] | None = None
    contrast: NDArray[np.float64] | None = None

    @property
    def can_tell_copies(self) -> bool:
        """True if inexact copies of the cases can be found."""
        return self.thumbnails is not None or self.sketches is not None

    def part(self, number: int) -> str:
        """Return `trained on` or `validated on`."""
        return TRAINED if self.trained[number] else VALIDATED


def known_cases(store: Store, split: Split) -> KnownCases:
    """Collect the training and validation cases of `split`. A case with one training slice counts as training."""
    chosen, trained = _chosen(split)
    ids = np.array([store.case_ids[case] for case in chosen], np.str_)
    if store.task == "classification":
        digests = store.text_column("sha256")
        known = KnownCases(ids, trained, np.array([digests[case] for case in chosen]), store.thumbnails[chosen])
        if not store.names_patients:
            return known
        return replace(known, heads=store.heads[chosen], patients=np.array(store.patients, np.str_)[chosen])
    scans, others = store.text_column("scans"), _others(store, chosen)
    spacing = np.array([store.spacing(case) for case in chosen])
    return KnownCases(
        ids, trained, np.array([scans[case] for case in chosen], np.str_), sketches=store.sketches[chosen],
        other_ids=np.array([name for _, name in others], np.str_),
        other_of=np.array([number for number, _ in others], np.int64), spacing=spacing, shape=store.shapes[chosen],
        brain_ml=store.brain_voxels[chosen] * spacing.prod(axis=1) / 1000, contrast=store.contrast[chosen],
    )  # fmt: skip


def save_known_cases(path: Path, store: Store, split: Split) -> None:
    """Write the known cases of `split` to `path` unless it has them already. Raises OSError."""
    stamp = _stamp(store, split)
    with suppress(OSError, ValueError):
        if _read(path)[0].get("stamp") == stamp:
            return
    write_known_cases(path, known_cases(store, split), stamp)


def write_known_cases(path: Path, known: KnownCases, stamp: str = "") -> None:
    """Write `known` to `path` atomically; `stamp` identifies its store and split. Raises OSError.

    Sketches, heads, thumbnails and digests are dropped in this order beyond 32,000 patients or 200,000 images.
    """
    every = {field.name: getattr(known, field.name) for field in fields(known)}
    arrays = {name: array for name, array in every.items() if array is not None}
    for name in _LEFT_OUT:
        if sum(array.nbytes for array in arrays.values()) > _MOST_ALL - _HEADERS:
            arrays.pop(name, None)
    write_arrays(path, {"format": FORMAT, "stamp": stamp}, arrays)


def read_known_cases(path: Path) -> KnownCases:
    """Read what `write_known_cases` wrote. Raises OSError, and ValueError for any other file."""
    return _read(path)[1]


def _read(path: Path) -> tuple[dict[str, Any], KnownCases]:
    about, arrays = read_arrays(path, _MOST_FILE, _MOST_ALL)
    if about.get("format") != FORMAT:
        raise ValueError(f"{path} has another format")
    if not {"ids", "trained"} <= set(arrays):
        raise ValueError(f"{path} has no case ids")
    count = arrays["ids"].size
    for name, (kind, shape) in _KINDS.items():
        if name in arrays:
            _check(path, name, arrays[name], kind, (count, *shape))
    if "other_ids" in arrays:
        names, numbers = arrays["other_ids"], arrays.get("other_of", np.empty(0))
        _check(path, "other_ids", names, "U", (names.size,))
        _check(path, "other_of", numbers, "i", (names.size,))
        if ((numbers < 0) | (numbers >= count)).any():
            raise ValueError(f"{path}: other_of refers to missing cases")
    known = {field.name: arrays.get(field.name) for field in fields(KnownCases)}
    return about, KnownCases(**known)  # type: ignore[arg-type]


def ids_of_split(path: Path) -> KnownCases | None:
    """Read only the ids from a run's split.json, for runs without known cases; None if it cannot be read."""
    try:
        parts = json.loads(path.read_text(encoding="utf-8"))["parts"]
        train, val = (_ids(parts.get(part, [])) for part in ("train", "val"))
    except (OSError, ValueError, RecursionError, KeyError, IndexError, TypeError, AttributeError):
        return None
    first = set(train)
    rest = [name for name in val if name not in first]
    return KnownCases(np.array([*train, *rest], np.str_), np.arange(len(train) + len(rest)) < len(train))


def _ids(entries: Any) -> list[str]:
    names = [entry if isinstance(entry, str) else entry[0] for entry in entries]
    if not all(isinstance(name, str) for name in names):
        raise ValueError("invalid id in a split")
    return list(dict.fromkeys(names))


def _chosen(split: Split) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the training cases followed by the validation cases, and a mask of the training cases."""
    train, val = (_cases(numbers) for numbers in (split.train, split.val))
    chosen = np.concatenate([train, np.setdiff1d(val, train)])
    return chosen, np.arange(len(chosen)) < len(train)


def _others(store: Store, chosen: NDArray[np.int64]) -> list[tuple[int, str]]:
    """Return (index into `chosen`, id in another edition) pairs."""
    clinical = store.clinical
    others = (clinical[case].get("other_ids", {}).values() for case in chosen)
    return [(number, str(name)) for number, names in enumerate(others) for name in names]


def _stamp(store: Store, split: Split) -> str:
    """Hash the store's fingerprint and its training and validation cases."""
    chosen, trained = _chosen(split)
    others = _others(store, chosen) if store.task == "segmentation" else []
    cases = [store.case_ids[case] for case in chosen]
    content = json.dumps([store.fingerprint, cases, int(trained.sum()), others])
    return hashlib.sha256(content.encode()).hexdigest()


def _cases(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.unique(numbers[:, 0] if numbers.ndim == 2 else numbers)


def _check(path: Path, name: str, array: NDArray[Any], kind: str, shape: tuple[int, ...]) -> None:
    if array.dtype.kind != kind or array.shape != shape:
        raise ValueError(f"{path}: {name} is {array.dtype} of shape {array.shape}, expected shape {shape}")
