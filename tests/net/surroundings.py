"""Surroundings of the recorded tests: a clean environment, a SLURM of shell scripts, slices of the H5 edition."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

CACHE = os.environ["HPC_TUMOR_CACHE_DIR"]  # set before tests clear the environment
FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"

# A SLURM with one job at a time, which stays queued until it is cancelled.
FAKE_SLURM = {
    "sbatch": """for script; do :; done
        [ -f "$script" ] || script=/dev/stdin
        sed -n 's/^#SBATCH --job-name=//p' "$script" > "${0%/*}/job"
        echo 4242""",
    "squeue": """[ -f "${0%/*}/job" ] || exit 0
        case "$*" in
        *--format=%F* | *--format=%i) echo 4242 ;;
        *) echo "4242|$(cat "${0%/*}/job")|PENDING|0:00|1|N/A||Priority" ;;
        esac""",
    "scancel": 'rm -f "${0%/*}/job"',
    "sacct": "",
}


def bare(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Return a clean environment, without other programs, 100 columns wide."""
    for name in list(os.environ):
        if name.startswith(("HPC_TUMOR_", "SLURM_", "SBATCH_", "PYTHONPATH", "CUDA_", "TERMINAL_WIDTH")):
            patch.delenv(name)
    for name in ("SCRATCH", "WORK", "FAST", "CINECA_SCRATCH", "LOCAL_SCRATCH", "JOBSCRATCH", "FORCE_COLOR"):
        patch.delenv(name, raising=False)
    (folder / "home" / "programs").mkdir(parents=True, exist_ok=True)
    for name, value in {
        "HOME": folder / "home", "HPC_TUMOR_CONFIG_DIR": folder / "home" / "configuration", "COLUMNS": 100,
        "PATH": folder / "home" / "programs", "NO_COLOR": 1, "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": 1, "USER": "somebody", "HPC_TUMOR_CACHE_DIR": CACHE,
    }.items():  # fmt: skip
        patch.setenv(name, str(value))


def kept(folder: Path, version: str) -> None:
    """Unpack the fixtures of a version into a folder: stores, runs by outcome, and single files."""
    for path in (FIXTURES / version).iterdir():
        if path.suffix == ".xz":
            with tarfile.open(path) as archive:
                archive.extractall(folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
        else:
            (folder / path.name).write_bytes(path.read_bytes())


def write_programs(folder: Path, scripts: dict[str, str]) -> None:
    """Write programs to a folder, given by name and shell code."""
    for name, script in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)


def write_slices(folder: Path, patients: int) -> None:
    """Write patients of the Kaggle H5 edition: `volume_<n>_slice_<z>.h5` with 155 slices of 16 x 16 pixels each."""
    folder.mkdir()
    for patient in range(1, patients + 1):
        plane = np.random.default_rng([7, patient]).integers(-50, 900, (10, 10, 4))
        for z in range(155):
            image, mask = np.zeros((16, 16, 4)), np.zeros((16, 16, 3), np.uint8)
            if 20 <= z < 140:
                image[3:-3, 3:-3] = (plane + z) / 256
            if 60 <= z < 90:
                mask[4:8, 4:8, z % 3] = 1
            with h5py.File(folder / f"volume_{patient}_slice_{z}.h5", "w") as file:
                file["image"], file["mask"] = image, mask


def write_images(folder: Path, images: int) -> None:
    """Write heads of four classes as JPEG, a fifth for testing, of two sizes and modes, with integer arithmetic.

    Images of `hpc-tumor phantom` differ in a few pixels between kinds of CPU.
    """
    for number in range(images):
        kind, draw = number % 4, np.random.default_rng([8, number])
        side = 150 + 30 * (number % 3)
        y, x = np.mgrid[:side, :side] - side // 2
        spots = np.kron(draw.integers(0, 100, (15, 15)), np.ones((side // 15, side // 15), int))  # no two are equal
        pixels = np.where(x * x + y * y < (side * 2 // 5) ** 2, 60 + spots, 0)
        place = draw.integers(-side // 8, side // 8, 2)
        pixels[(x - place[0]) ** 2 * (1 + kind) + (y - place[1]) ** 2 < (side // 10) ** 2] += 30 * kind
        name = ("glioma", "meningioma", "notumor", "pituitary")[kind]
        path = folder / ("Testing" if number // 4 % 5 == 0 else "Training") / name / f"{name}-{number:03}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).convert("RGB" if number % 5 == 0 else "L").save(path, quality=90)
