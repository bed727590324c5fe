"""The cases that chose the weights of a run: those that trained and validated, told by id and by content.

A run keeps them in its directory: the store may be gone, or have changed, when somebody predicts with the run.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass, fields
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
_MOST_ALL = 2**29  # bytes of all arrays; those of 7,000 images have 10 MB, those of 2,000 patients 35 MB
_MOST_FILE = _MOST_ALL + 2**20  # what cannot be compressed takes a little more
_HEADERS = 2**16  # bytes of the archive beside its arrays, at most
_LEFT_OUT = ("sketches", "thumbnails", "digests")  # in this order, where there are too many cases to keep all
# Kind and shape of each array beside the number of its cases; those of `other_ids` have a number of their own.
_KINDS: dict[str, tuple[str, tuple[int, ...]]] = {
    "ids": ("U", ()), "trained": ("b", ()), "digests": ("U", ()), "thumbnails": ("u", (SIDE, SIDE)),
    "sketches": ("i", (len(MODALITIES), CELLS, CELLS, CELLS)), "spacing": ("f", (3,)), "shape": ("i", (3,)),
    "brain_ml": ("f", ()), "contrast": ("f", (NUMBERS,)),
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class KnownCases:
    """Cases of a store, those that trained before those that validated; what is not kept of them is None.

    Attributes:
        ids: `(n,)` of cases, or paths of images.
        trained: `(n,)` bool: trained on; the others validated.
        digests: `(n,)` SHA-256 in hexadecimal: of each image's decoded pixels, or of each patient's scans.
        thumbnails: `(n, 32, 32)` uint8, by which near copies of images are found.
        sketches: `(n, 4, 16, 16, 16)` int8, by which copies of patients' scans are found.
        other_ids, other_of: `(m,)` ids of patients in other editions, and the number of the case that each is of.
        spacing: `(n, 3)` voxel size along z, y, x in mm.
        shape: `(n, 3)` voxels along z, y, x.
        brain_ml: `(n,)` volume of the brain.
        contrast: `(n, 14)`, see `data.contrast`.
    """

    ids: NDArray[np.str_]
    trained: NDArray[np.bool_]
    digests: NDArray[np.str_] | None = None
    thumbnails: NDArray[np.uint8] | None = None
    sketches: NDArray[np.int8] | None = None
    other_ids: NDArray[np.str_] | None = None
    other_of: NDArray[np.int64] | None = None
    spacing: NDArray[np.float64] | None = None
    shape: NDArray[np.int64] | None = None
    brain_ml: NDArray[np.float64] | None = None
    contrast: NDArray[np.float64] | None = None

    @property
    def can_tell_copies(self) -> bool:
        """True where copies of cases that are not equal in every pixel or voxel are found."""
        return self.thumbnails is not None or self.sketches is not None

    def part(self, number: int) -> str:
        """`trained on` or `validated on`."""
        return TRAINED if self.trained[number] else VALIDATED


def known_cases(store: Store, split: Split) -> KnownCases:
    """Those of `store` that train and validate in `split`. A case of which one slice trains has trained."""
    chosen, trained = _chosen(split)
    ids = np.array([store.case_ids[case] for case in chosen], np.str_)
    if store.task == "classification":
        digests = store.text_column("sha256")
        return KnownCases(ids, trained, np.array([digests[case] for case in chosen], np.str_), store.thumbnails[chosen])
    scans, others = store.text_column("scans"), _others(store, chosen)
    spacing = np.array([store.spacing(case) for case in chosen])
    return KnownCases(
        ids, trained, np.array([scans[case] for case in chosen], np.str_), sketches=store.sketches[chosen],
        other_ids=np.array([name for _, name in others], np.str_),
        other_of=np.array([number for number, _ in others], np.int64), spacing=spacing, shape=store.shapes[chosen],
        brain_ml=store.brain_voxels[chosen] * spacing.prod(axis=1) / 1000, contrast=store.contrast[chosen],
    )  # fmt: skip


def save_known_cases(path: Path, store: Store, split: Split) -> None:
    """Write the known cases of `split` to `path`, unless it holds them already. Raises OSError."""
    stamp = _stamp(store, split)
    with suppress(OSError, ValueError):
        if _read(path)[0].get("stamp") == stamp:
            return
    write_known_cases(path, known_cases(store, split), stamp)


def write_known_cases(path: Path, known: KnownCases, stamp: str = "") -> None:
    """Replace `path` with `known`, whole or not at all; `stamp` says what they are of. Raises OSError.

    What tells copies is left out where there are too many cases to keep it: of more than 32,000 patients, or 300,000
    images.
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
        raise ValueError(f"{path} is of another format")
    if not {"ids", "trained"} <= set(arrays):
        raise ValueError(f"{path} lacks the ids of its cases")
    count = arrays["ids"].size
    for name, (kind, shape) in _KINDS.items():
        if name in arrays:
            _check(path, name, arrays[name], kind, (count, *shape))
    if "other_ids" in arrays:
        names, numbers = arrays["other_ids"], arrays.get("other_of", np.empty(0))
        _check(path, "other_ids", names, "U", (names.size,))
        _check(path, "other_of", numbers, "i", (names.size,))
        if ((numbers < 0) | (numbers >= count)).any():
            raise ValueError(f"{path}: its other_of name cases that are not there")
    known = {field.name: arrays.get(field.name) for field in fields(KnownCases)}
    return about, KnownCases(**known)  # type: ignore[arg-type]


def ids_of_split(path: Path) -> KnownCases | None:
    """The ids that a run's split.json names, for runs that kept no more; None where it cannot be read."""
    try:
        parts = json.loads(path.read_text(encoding="utf-8"))["parts"]
        train, val = (_ids(parts.get(part, [])) for part in ("train", "val"))
    except (OSError, ValueError, RecursionError, KeyError, IndexError, TypeError, AttributeError):
        return None
    first = set(train)
    rest = [name for name in val if name not in first]
    return KnownCases(np.array([*train, *rest], np.str_), np.arange(len(train) + len(rest)) < len(train))


def _ids(entries: Any) -> list[str]:
    """Ids of cases, each once, of entries that are ids, or pairs of id and slice."""
    names = [entry if isinstance(entry, str) else entry[0] for entry in entries]
    if not all(isinstance(name, str) for name in names):
        raise ValueError("a split names something else than ids")
    return list(dict.fromkeys(names))


def _chosen(split: Split) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The cases that train, then those that only validate; and whether each trains."""
    train, val = (_cases(numbers) for numbers in (split.train, split.val))
    chosen = np.concatenate([train, np.setdiff1d(val, train)])
    return chosen, np.arange(len(chosen)) < len(train)


def _others(store: Store, chosen: NDArray[np.int64]) -> list[tuple[int, str]]:
    """The ids of patients in other editions, each after the number of its case among those chosen."""
    clinical = store.clinical
    others = (clinical[case].get("other_ids", {}).values() for case in chosen)
    return [(number, str(name)) for number, names in enumerate(others) for name in names]


def _stamp(store: Store, split: Split) -> str:
    """A hash of what known cases are of: the store, and the cases of it that train and validate."""
    chosen, trained = _chosen(split)
    others = _others(store, chosen) if store.task == "segmentation" else []
    cases = [store.case_ids[case] for case in chosen]
    said = json.dumps([store.fingerprint, cases, int(trained.sum()), others])
    return hashlib.sha256(said.encode()).hexdigest()


def _cases(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.unique(numbers[:, 0] if numbers.ndim == 2 else numbers)


def _check(path: Path, name: str, array: NDArray[Any], kind: str, shape: tuple[int, ...]) -> None:
    if array.dtype.kind != kind or array.shape != shape:
        raise ValueError(f"{path}: its {name} are {array.dtype} of shape {array.shape}, not of {shape}")
