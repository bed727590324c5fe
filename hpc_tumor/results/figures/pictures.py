"""Read the pictures that a run stored for its report; the file is untrusted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from hpc_tumor.results.compare.entries import Entry
from hpc_tumor.results.figures.canvas.drawing import Plan
from hpc_tumor.results.read.values import number, section
from hpc_tumor.run_dir import RunDir
from hpc_tumor.system.npz import read_arrays

FORMAT = "hpc-tumor pictures 1"
_MOST_FILE = 64 * 2**20  # bytes; usual files have 3 MB
_MOST_ALL = 96 * 2**20
LONGEST = 1024  # pixels per side
WHICH = ("best", "median", "worst")


@dataclass(frozen=True)
class Pictures:
    """Arrays of one file by name, and their description."""

    arrays: Mapping[str, np.ndarray]
    about: Mapping[str, Any]

    def get(self, name: str, axes: int, kind: str = "uint8") -> np.ndarray | None:
        """Return an array with this number of axes, none empty or longer than LONGEST; else None."""
        array = self.arrays.get(name)
        fits = array is not None and array.dtype == kind and array.ndim == axes and min(array.shape, default=0) > 0
        return array if fits and array is not None and max(array.shape) <= LONGEST else None

    def listed(self, name: str, count: int) -> list[Mapping[str, Any]]:
        """Return the facts of each of `count` pictures; missing ones are empty."""
        entries = self.about.get(name)
        facts: list[Mapping[str, Any]] = (
            [section(item) for item in entries[:count]] if isinstance(entries, list) else []
        )
        return facts + [{}] * (count - len(facts))

    def case(self, which: str) -> Mapping[str, Any]:
        """Return the facts of the best, median or worst case."""
        return section(section(self.about.get("cases")).get(which))


def pictures_of(entry: Entry) -> Pictures | None:
    """Return the pictures of the first run of an entry that has any."""
    return next((pictures for run in entry.runs if (pictures := read_pictures(run.place)) is not None), None)


def read_pictures(run: Path) -> Pictures | None:
    """Read the pictures of the run directory `run`; None if there are none that are valid."""
    file = RunDir(run).pictures
    try:
        status = file.stat()
        if not file.is_file() or status.st_size > _MOST_FILE:
            return None
        return _read(str(file), status.st_mtime_ns, status.st_size)
    except (OSError, ValueError):
        return None


@lru_cache(maxsize=32)  # several figures use one file
def _read(file: str, changed: int, size: int) -> Pictures | None:
    about, arrays = read_arrays(Path(file), _MOST_FILE, _MOST_ALL)
    return Pictures(arrays, about) if about.get("format") == FORMAT else None


def shown_number(facts: Mapping[str, Any], name: str) -> str:
    """Return a share as `0.912`, or a question mark."""
    value = number(facts.get(name))
    return "?" if value is None else f"{value:.3f}"


def raster_plan(name: str, section_: str, title: str, caption: str, draw: Any) -> Plan:
    """Return the plan of a figure made of images."""
    return Plan(name, section_, title, caption, draw, raster=True)
