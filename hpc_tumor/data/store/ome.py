"""OME-Zarr 0.5 metadata of cases and masks, for any OME-Zarr viewer (https://ngff.openmicroscopy.org/0.5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hpc_tumor.data.brain import BrainStatistics
from hpc_tumor.data.editions import Edition
from hpc_tumor.vocabulary import CAVITY, LABEL_NAMES, MODALITIES

VERSION = "0.5"
# Red, green, blue, opacity; NCR/NET, ED and ET as BraTS figures usually show them.
_LABEL_COLORS = {1: (228, 26, 28, 255), 2: (77, 175, 74, 255), 3: (255, 217, 47, 255), 4: (152, 78, 163, 255)}
_CONTRAST = (-2.0, 3.0)  # standard deviations around the brain's mean


def image_metadata(name: str, spacing: Sequence[float], brain: BrainStatistics) -> dict[str, Any]:
    """Return the `ome` attribute of an image `(c, z, y, x)` with `spacing` along z, y, x in mm."""
    axes = [{"name": "c", "type": "channel"}, *_space_axes()]
    return {
        "version": VERSION,
        "multiscales": [_multiscale(name, axes, [1.0, *spacing])],
        "omero": {"channels": [_channel(index, brain) for index in range(len(MODALITIES))]},
    }


def label_colors() -> dict[str, tuple[int, int, int]]:
    """Return red, green and blue of each label by name."""
    return {name: _LABEL_COLORS[value][:3] for value, name in enumerate((*LABEL_NAMES, CAVITY)) if value}


def label_metadata(spacing: Sequence[float], edition: Edition) -> dict[str, Any]:
    """Return the `ome` attribute of the label image `(z, y, x)`, each label with its numbers in `edition`."""
    numbers: dict[int, list[int]] = {}
    for number, value in edition.values.items():
        numbers.setdefault(value, []).append(number)
    names = dict(enumerate((*LABEL_NAMES, CAVITY)))
    return {
        "version": VERSION,
        "multiscales": [_multiscale("seg", _space_axes(), list(spacing))],
        "image-label": {
            "colors": [{"label-value": value, "rgba": list(_LABEL_COLORS[value])} for value in sorted(numbers)],
            "properties": [
                {"label-value": value, "name": names[value], "edition": edition.name, "numbers": numbers[value]}
                for value in sorted(numbers)
            ],
            "source": {"image": "../../"},
        },
    }


def stack_metadata(path: str) -> dict[str, Any]:
    """Return the `ome` attribute of a store of images with masks, whose array `(n, y, x)` is at `path`."""
    return {"version": VERSION, "multiscales": [_stack("images", path)]}


def mask_metadata(name: str) -> dict[str, Any]:
    """Return the `ome` attribute of the masks `(n, y, x)`: 1 in the tumour."""
    return {
        "version": VERSION,
        "multiscales": [_stack(name, "0")],
        "image-label": {
            "colors": [{"label-value": 1, "rgba": list(_LABEL_COLORS[1])}],
            "properties": [{"label-value": 1, "name": name}],
            "source": {"image": "../../"},
        },
    }


def _stack(name: str, path: str) -> dict[str, Any]:
    axes = [{"name": "image"}, {"name": "y", "type": "space"}, {"name": "x", "type": "space"}]
    return _multiscale(name, axes, [1.0, 1.0, 1.0], path)


def _space_axes() -> list[dict[str, str]]:
    return [{"name": name, "type": "space", "unit": "millimeter"} for name in "zyx"]


def _multiscale(name: str, axes: list[dict[str, str]], scale: list[float], path: str = "0") -> dict[str, Any]:
    transform = [{"type": "scale", "scale": scale}]
    return {"name": name, "axes": axes, "datasets": [{"path": path, "coordinateTransformations": transform}]}


def _channel(index: int, brain: BrainStatistics) -> dict[str, Any]:
    low, high = (float(value) for value in brain.extent[index])
    high = max(high, low + max(1.0, 1e-6 * abs(low)))  # viewers require a range, even for a constant image
    mean, deviation = brain.moments[index]
    start, end = (float(mean + factor * deviation) for factor in _CONTRAST)
    start, end = max(low, start), min(high, end)
    if start >= end:
        start, end = low, high
    return {
        "label": MODALITIES[index],
        "color": "FFFFFF",
        "active": index == 0,
        "coefficient": 1,
        "family": "linear",
        "inverted": False,
        "window": {"min": low, "max": high, "start": start, "end": end},
    }
