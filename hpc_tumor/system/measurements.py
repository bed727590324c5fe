"""Measurements kept in the user's cache, so that each is made once per machine."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import platformdirs

from hpc_tumor.errors import HpcTumorError
from hpc_tumor.system import atomic


def read(kind: str, facts: Mapping[str, Any], folder: Path | None = None) -> dict[str, float] | None:
    """Return the numbers of this `kind` measured under these `facts`; None if there are none, or they are damaged.

    `folder` is one to look in instead of the user's cache.
    """
    path = _path(kind, facts, folder)
    if path is None:
        return None
    try:
        numbers = {str(name): float(value) for name, value in json.loads(path.read_bytes())["measured"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return numbers if all(math.isfinite(value) and value > 0 for value in numbers.values()) else None


def write(kind: str, facts: Mapping[str, Any], measured: Mapping[str, float], folder: Path | None = None) -> None:
    """Keep numbers above 0. If the cache cannot be written, the next run measures again."""
    path = _path(kind, facts, folder)
    if path is None:
        return
    with suppress(OSError, HpcTumorError):
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_json(path, {"measured": dict(measured), "facts": dict(facts)})


def cache_folder() -> Path | None:
    """Return the user's cache, HPC_TUMOR_CACHE_DIR if that is set; None without a home directory."""
    try:
        folder = Path(os.environ.get("HPC_TUMOR_CACHE_DIR") or platformdirs.user_cache_dir("hpc-tumor"))
    except RuntimeError:
        return None
    return folder if folder.is_absolute() else None


def _path(kind: str, facts: Mapping[str, Any], folder: Path | None) -> Path | None:
    folder = folder or cache_folder()
    key = hashlib.sha256(json.dumps(dict(facts), sort_keys=True, default=str).encode()).hexdigest()[:24]
    return None if folder is None else folder / kind / f"{key}.json"
