"""Make the descriptors of the Cheng set that the package ships.

    python tools/make_patient_reference.py FOLDER [--to cheng.npz]

FOLDER has `slices-64.npz` (arrays `slices` (3064, 64, 64) uint8 and `index`) and `patients.csv` (columns index, class,
pid). The same input gives the same file, byte for byte, with the same versions of NumPy and SciPy.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import fft

import hpc_tumor.data.patients
from hpc_tumor.data.patients.descriptors import BLUR, SHIPPED_SIDE, SIDE, contrast_gain, transform
from hpc_tumor.data.patients.reference import FILE, SLICES
from hpc_tumor.data.raw.brain_mri import head_box
from hpc_tumor.vocabulary import CLASSES

LEVELS = 24  # grey levels to either side of 0: what they round off changes no correlation by more than 0.002


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--to", type=Path, metavar="NPZ", default=Path(hpc_tumor.data.patients.__file__).parent / FILE)
    options = parser.parse_args()
    with np.load(options.folder / "slices-64.npz") as arrays:
        slices = arrays["slices"][np.argsort(arrays["index"])]
    with (options.folder / "patients.csv").open() as file:
        rows = {int(row["index"]): row for row in csv.DictReader(file)}
    if len(slices) != SLICES or sorted(rows) != list(range(1, SLICES + 1)):
        parser.error(f"{options.folder} does not have all {SLICES} slices")
    ordered = [rows[number] for number in range(1, SLICES + 1)]
    detail = transform(slices)[:, :SHIPPED_SIDE, :SHIPPED_SIDE]
    contrast = fft.idctn(detail * contrast_gain(SHIPPED_SIDE, BLUR * SHIPPED_SIDE / SIDE), axes=(1, 2), norm="ortho")
    contrast *= LEVELS / np.abs(contrast).max(axis=(1, 2), keepdims=True)
    np.savez_compressed(
        options.to,
        contrast=np.rint(contrast).astype(np.int8),
        boxes=np.array([head_box(Image.fromarray(picture)) for picture in slices], np.uint8),
        labels=np.array([CLASSES.index(row["class"]) for row in ordered], np.uint8),
        pids=np.array([row["pid"] for row in ordered]),
    )
    print(f"{options.to}: {options.to.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
