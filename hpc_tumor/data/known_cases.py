"""The cases that chose the weights of a run: those that trained and validated, told by id and by content.

A run keeps them in its directory: the store may be gone, or have changed, when somebody predicts with the run.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_tumor.data.near_duplicates import SIDE
from hpc_tumor.data.split_file import Split
from hpc_tumor.data.store import Store
from hpc_tumor.npz import read_arrays, write_arrays

FORMAT = "hpc-tumor known cases 1"
TRAINED, VALIDATED = "trained on", "validated on"
_MOST_FILE, _MOST_ALL = 2**28, 2**29  # bytes; those of 7,000 images have 5 and 10 MB


@dataclass(frozen=True, eq=False)
class KnownCases:
    """Cases of a store, those that trained before those that validated.

    Attributes:
        ids: of cases, or paths of images.
        trained: `(n,)` bool: trained on; the others validated.
        digests: `(n,)` SHA-256 in hexadecimal of each image's decoded pixels; None where the ids alone are known.
        thumbnails: `(n, 32, 32)` uint8, by which near copies of images are found; None for patients.
    """

    ids: tuple[str, ...]
    trained: NDArray[np.bool_]
    digests: tuple[str, ...] | None = None
    thumbnails: NDArray[np.uint8] | None = None

    def part(self, number: int) -> str:
        """`trained on` or `validated on`."""
        return TRAINED if self.trained[number] else VALIDATED


def known_cases(store: Store, split: Split) -> KnownCases:
    """Those of `store` that train and validate in `split`. A case of which one slice trains has trained."""
    train, val = (_cases(numbers) for numbers in (split.train, split.val))
    chosen = [*train.tolist(), *np.setdiff1d(val, train).tolist()]
    ids, trained = tuple(store.case_ids[case] for case in chosen), np.arange(len(chosen)) < len(train)
    if store.task == "segmentation":
        return KnownCases(ids, trained)
    digests = store.text_column("sha256")
    return KnownCases(ids, trained, tuple(digests[case] for case in chosen), store.thumbnails[chosen])


def write_known_cases(path: Path, known: KnownCases) -> None:
    """Replace `path` with `known`, whole or not at all. Raises OSError."""
    arrays: dict[str, NDArray[Any]] = {"ids": np.array(known.ids, np.str_), "trained": known.trained}
    if known.digests is not None:
        arrays["digests"] = np.array(known.digests, np.str_)
    if known.thumbnails is not None:
        arrays["thumbnails"] = known.thumbnails
    write_arrays(path, {"format": FORMAT}, arrays)


def read_known_cases(path: Path) -> KnownCases:
    """What `write_known_cases` wrote. Raises FileNotFoundError, other OSErrors, and ValueError for any other file."""
    about, arrays = read_arrays(path, _MOST_FILE, _MOST_ALL)
    if about.get("format") != FORMAT:
        raise ValueError(f"{path} is of another format")
    ids, trained = arrays.get("ids"), arrays.get("trained")
    if ids is None or trained is None:
        raise ValueError(f"{path} lacks the ids of its cases")
    count = len(ids) if ids.ndim else 0
    _check(path, "ids", ids, "U", (count,))
    _check(path, "trained", trained, "b", (count,))
    if (digests := arrays.get("digests")) is not None:
        _check(path, "digests", digests, "U", (count,))
    if (thumbnails := arrays.get("thumbnails")) is not None:
        _check(path, "thumbnails", thumbnails, "u", (count, SIDE, SIDE))
    return KnownCases(tuple(ids.tolist()), trained, None if digests is None else tuple(digests.tolist()), thumbnails)


def ids_of_split(path: Path) -> KnownCases | None:
    """The ids that a run's split.json names, for runs that kept no more; None where it cannot be read."""
    try:
        parts = json.loads(path.read_text(encoding="utf-8"))["parts"]
        train, val = (_ids(parts.get(part, [])) for part in ("train", "val"))
    except (OSError, ValueError, RecursionError, KeyError, IndexError, TypeError, AttributeError):
        return None
    first = set(train)
    rest = [name for name in val if name not in first]
    return KnownCases((*train, *rest), np.arange(len(train) + len(rest)) < len(train))


def _ids(entries: Any) -> list[str]:
    """Ids of cases, each once, of entries that are ids, or pairs of id and slice."""
    names = [entry if isinstance(entry, str) else entry[0] for entry in entries]
    if not all(isinstance(name, str) for name in names):
        raise ValueError("a split names something else than ids")
    return list(dict.fromkeys(names))


def _cases(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.unique(numbers[:, 0] if numbers.ndim == 2 else numbers)


def _check(path: Path, name: str, array: NDArray[Any], kind: str, shape: tuple[int, ...]) -> None:
    if array.dtype.kind != kind or array.shape != shape:
        raise ValueError(f"{path}: its {name} are {array.dtype} of shape {array.shape}, not of {shape}")
