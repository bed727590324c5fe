"""Files of the Cheng set, written with h5py as MATLAB 7.3 writes them."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

SIDE = 256


def arrays(seed: int = 0, label: float = 1.0, pid: str = "100360") -> dict[str, np.ndarray]:
    """Return what a file holds, by name, as MATLAB shows it: rows first. Neither picture nor mask is symmetric."""
    draw = np.random.default_rng(seed)
    image = np.zeros((SIDE, SIDE), np.int16)
    image[30:200, 60:220] = draw.integers(200, 1500, (170, 160))
    image[0, 0] = 40  # the darkest pixels are not 0 everywhere
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[50:80, 100:180] = 1
    return {
        "label": np.array([[label]]),
        "PID": np.array([[ord(letter) for letter in pid]], np.uint16),
        "image": image,
        "tumorMask": mask,
        "tumorBorder": np.array([[101.0], [51.0], [180.0], [51.0], [180.0], [80.5], [101.0], [80.0]]),
    }


def write_mat(path: Path, values: dict[str, np.ndarray]) -> Path:
    """Write the arrays, columns first, after a user block of 512 bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, value in values.items():
            big = value.ndim > 1 and value.size > 1000
            options = {"compression": "gzip", "chunks": (64, value.shape[0])} if big else {}
            file.create_dataset(f"cjdata/{name}", data=value.T, **options)
    with path.open("r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64, Created on: Mon Dec 1 2026 HDF5 schema 1.00 .".ljust(124))
        raw.write(b"\x00\x02IM")
    return path
