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


def read(kind: str, facts: Mapping[str, Any]) -> dict[str, float] | None:
    """Return the numbers of this `kind` measured under these `facts`; None if there are none, or they are damaged."""
    path = _path(kind, facts)
    if path is None:
        return None
    try:
        numbers = {str(name): float(value) for name, value in json.loads(path.read_bytes())["measured"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return numbers if all(math.isfinite(value) and value > 0 for value in numbers.values()) else None


def write(kind: str, facts: Mapping[str, Any], measured: Mapping[str, float]) -> None:
    """Keep numbers above 0. If the cache cannot be written, the next run measures again."""
    path = _path(kind, facts)
    if path is None:
        return
    with suppress(OSError, HpcTumorError):
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_json(path, {"measured": dict(measured), "facts": dict(facts)})


def _path(kind: str, facts: Mapping[str, Any]) -> Path | None:
    """Return the file of a measurement, in HPC_TUMOR_CACHE_DIR if that is set; None without a home directory."""
    try:
        folder = Path(os.environ.get("HPC_TUMOR_CACHE_DIR") or platformdirs.user_cache_dir("hpc-tumor"))
    except RuntimeError:
        return None
    key = hashlib.sha256(json.dumps(dict(facts), sort_keys=True, default=str).encode()).hexdigest()[:24]
    return folder / kind / f"{key}.json" if folder.is_absolute() else None
