"""The Kaggle H5 edition, made from NIfTI volumes as it was: a file per slice, standardised slice by slice."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

SLICES = 155


def standardised(image: np.ndarray) -> np.ndarray:
    """Return float64 `(4, Z, Y, X)`: each slice and modality with mean 0 and deviation 1; 0 / 0 if constant."""
    values = image.astype(np.float64)
    with np.errstate(invalid="ignore"):
        return (values - values.mean((2, 3), keepdims=True)) / values.std((2, 3), keepdims=True)


def patient(seed: int = 0, side: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Return int16 `(4, 155, Y, X)` on zeros, empty at both ends, and labels 0 to 3, `(155, Y, X)`."""
    draw = np.random.default_rng(seed)
    image = np.zeros((4, SLICES, side - 2, side), np.int16)
    image[:, 20:140, 3:-3, 3:-3] = draw.integers(-50, 900, (4, 120, side - 8, side - 6))
    label = np.zeros(image.shape[1:], np.uint8)
    label[60:90, 4:8, 4:8] = draw.integers(0, 4, (30, 4, 4))
    return image, label


def write_slice(path: Path, image: np.ndarray, mask: np.ndarray, **options: object) -> None:
    """Write one file with `image` and `mask` as given."""
    with h5py.File(path, "w") as file:
        file.create_dataset("image", data=image, **options)
        file.create_dataset("mask", data=mask, **options)


def write_volume(folder: Path, n: int, image: np.ndarray, label: np.ndarray, **options: object) -> Path:
    """Write 155 files of `image` `(4, Z, Y, X)` and the labels `(Z, Y, X)` one-hot; x is the first axis."""
    folder.mkdir(parents=True, exist_ok=True)
    for z in range(SLICES):
        mask = np.stack([value == label[z].T for value in (1, 2, 3)], axis=-1).astype(np.uint8)
        pixels = np.ascontiguousarray(image[:, z].transpose(2, 1, 0))
        write_slice(folder / f"volume_{n}_slice_{z}.h5", pixels, mask, **options)
    return folder
