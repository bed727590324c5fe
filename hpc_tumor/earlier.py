"""Defaults of earlier versions, in the settings that their runs stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def earlier_defaults(task: object, data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a stored `data` section whose defaults have changed since it was written.

    Versions without `conflicts` split images as deduplicated by default, and left none of them out.
    """
    if task != "classification" or "conflicts" in data or data.get("split_file") or data.get("split") == "published":
        return {}
    return {"split": "deduplicated", "conflicts": "keep"}


def with_earlier_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the nested settings of a stored run with the defaults of the version that wrote them."""
    data = values.get("data")
    if not isinstance(data, dict):
        return dict(values)
    return {**values, "data": {**data, **earlier_defaults(values.get("task"), data)}}
