"""Validation of a store's attributes, which may be damaged or untrusted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_tumor.data.editions import EDITIONS
from hpc_tumor.data.patients.reference import SLICES
from hpc_tumor.data.store.nodes import TYPES
from hpc_tumor.vocabulary import CAVITY, LABEL_NAMES, is_plain

_TASKS = ("segmentation", "classification")
Check = Callable[[Any], bool]


def index_fault(about: Mapping[str, Any], index: Mapping[str, Any]) -> str | None:
    """Return the first fault in the attributes of a store (`about`) or of its index, or None.

    A case's id is a folder's name, so it must not contain a path.
    """
    if about.get("task") not in _TASKS:
        return f"unknown task {str(about.get('task'))[:40]!r}"
    for name, kind in (("dataset", str), ("fingerprint", str), ("options", dict)):
        if not isinstance(about.get(name), kind):
            return f"missing or invalid {name}"
    volumes = about["task"] == "segmentation"
    ids = index.get("case_ids")
    if not isinstance(ids, list) or not ids or not all(_is_text(key) for key in ids) or len(set(ids)) != len(ids):
        return "invalid list of cases"
    if volumes and not all(_is_folder(key) for key in ids):
        return "the list of cases contains an invalid folder name"
    columns: dict[str, Check] = (
        {"dtypes": _is_type, "scans": _is_text, "clinical": _is_facts, "editions": _is_edition}
        if volumes
        else {"mode": _is_text, "sha256": _is_text, "signature": _is_text, "bytes": _is_count}
    )
    if not volumes and about["schema"] >= 2:
        columns |= {"patient": _is_text_or_empty, "source": _is_text_or_empty}
    if not volumes and "mask" in index:
        columns |= {"mask": _is_text_or_empty}
    for name, check in columns.items():
        values = index.get(name)
        if not isinstance(values, list) or len(values) != len(ids) or not all(map(check, values)):
            return f"invalid index column {name}"
    if volumes and index.get("labels") not in ([*LABEL_NAMES], [*LABEL_NAMES, CAVITY]):
        return "invalid list of labels"
    classes = index.get("classes")
    if not volumes and not (isinstance(classes, list) and all(map(_is_text, classes))):
        return "invalid list of classes"
    return None


def is_valid_column(name: str, values: NDArray[Any], index: Mapping[str, Any]) -> bool:
    """Return False for values that no column `name` of images has, although their type and number of axes are right."""
    if name in ("thumbnail", "head"):
        return values.shape[1:] == (32, 32)
    if name == "label":
        return int(values.max()) < len(index["classes"])
    if name == "slice":
        return bool(((values >= 0) & (values <= SLICES)).all())
    if name == "correlation":
        return not bool((np.abs(values) > 1.001).any())  # NaN where the source names the slice
    return True


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != "" and is_plain(value)


def _is_text_or_empty(value: Any) -> bool:
    return value == "" or _is_text(value)


def _is_folder(name: str) -> bool:
    return name.strip(".") != "" and "/" not in name


def _is_type(value: Any) -> bool:
    return value in TYPES


def _is_edition(value: Any) -> bool:
    return isinstance(value, str) and value in EDITIONS


def _is_facts(value: Any) -> bool:
    return isinstance(value, dict)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0
