"""Small raw files for the tests of data/: generated, or real samples from HPC_TUMOR_REAL_DATA."""

from __future__ import annotations

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from hpc_tumor.data.case import Case, CaseReader, walk
from hpc_tumor.data.raw.sources import inspect_listing

SHAPE = (12, 10, 6)  # x, y, z
LPS = np.array([[-1.0, 0, 0, 0], [0, -1.0, 0, 239], [0, 0, 1.0, 0], [0, 0, 0, 1]])
BRATS_2020 = ("flair", "t1", "t1ce", "t2")
BRATS_2023 = ("t2f", "t1n", "t1c", "t2w")


def real_data(folder: str) -> Path:
    """Return a folder of the real samples; skip the test if there are none."""
    root = os.environ.get("HPC_TUMOR_REAL_DATA")
    if not root:
        pytest.skip("HPC_TUMOR_REAL_DATA is not set: no real samples")
    return Path(root) / folder


def list_cases(reader: CaseReader, source: Path) -> list[Case]:
    """Return the cases that a reader finds below `source`."""
    return inspect_listing(walk(source), reader).cases


def brain(seed: int, dtype: str = "int16", shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Return intensities `(x, y, z)` inside a box on a zero background."""
    volume = np.zeros(shape)
    volume[2:-2, 2:-2, 1:-1] = np.random.default_rng(seed).normal(500, 100, (shape[0] - 4, shape[1] - 4, shape[2] - 2))
    return volume.astype(dtype)


def tumour(shape: tuple[int, ...] = SHAPE, enhancing: int = 4) -> np.ndarray:
    """Return labels `(x, y, z)`: 2 around 1 around the enhancing one."""
    labels = np.zeros(shape, np.uint16)
    labels[3:9, 3:7, 2:4] = 2
    labels[4:7, 4:6, 2:4] = 1
    labels[5, 5, 2] = enhancing
    return labels


def save(path: Path, array: np.ndarray, affine: np.ndarray | None = LPS, code: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(array, affine)
    image.header.set_data_dtype(array.dtype)
    image.set_sform(affine, 0)
    image.set_qform(affine, code)
    nib.save(image, path)
    return path


def write_case(
    folder: Path,
    *,
    seed: int = 0,
    suffixes: tuple[str, ...] = BRATS_2020,
    joint: str = "_",
    ending: str = ".nii.gz",
    dtype: str = "int16",
    labels: np.ndarray | None = None,
    affine: np.ndarray = LPS,
) -> Path:
    """Write a patient folder in the layout of BraTS."""
    for i, suffix in enumerate(suffixes):
        save(folder / f"{folder.name}{joint}{suffix}{ending}", brain(seed * 10 + i, dtype), affine)
    save(folder / f"{folder.name}{joint}seg{ending}", tumour() if labels is None else labels, affine)
    return folder


def write_patients(root: Path, n: int) -> Path:
    """Write `n` patients in the layout of BraTS 2020."""
    for i in range(1, n + 1):
        write_case(root / f"BraTS20_Training_{i:03}", seed=i)
    return root


def picture(seed: int, size: tuple[int, int] = (60, 50)) -> Image.Image:
    """Draw a bright ellipse of random patches on black, like no slice that is recognised; `size` is (width, height)."""
    draw = np.random.default_rng(seed)
    patches = np.kron(draw.integers(80, 255, (size[1] // 8 + 1, size[0] // 8 + 1)), np.ones((8, 8), int))
    y, x = np.mgrid[: size[1], : size[0]]
    inside = ((x / size[0] - 0.5) / 0.35) ** 2 + ((y / size[1] - 0.5) / 0.4) ** 2 < 1
    return Image.fromarray(np.where(inside, patches[: size[1], : size[0]], 0).astype(np.uint8))


def write_pictures(root: Path, per_class: int = 3, *, twins: bool = True) -> Path:
    """Write a Brain MRI tree of PNGs; with `twins`, the first test image of a class repeats its first training one."""
    for k, name in enumerate(("glioma", "meningioma", "notumor", "pituitary")):
        for p, part in enumerate(("Training", "Testing")):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(per_class):
                seed = k * 100 + i + (0 if twins and i == 0 else 50 * p)
                picture(seed).save(folder / f"{part[:2]}-{name[:2]} ({i}).png")
    return root


def tree(folder: Path) -> dict[str, bytes]:
    """Return every file below `folder` with its content."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
