"""Make the synthetic stores: patients of int16 and of uint16, and images."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np

from gpu_report.job import Job, Tell
from hpc_tumor.data.convert.prepare import prepare_dataset
from hpc_tumor.data.phantom.dataset import make_phantom
from hpc_tumor.data.raw.sources import inspect_source

# The fewest for a batch of 32 slices or 64 images to train on: making them takes seconds.
PATIENTS, IMAGES, QUICK_IMAGES = 3, 120, 48
SMALL = (64, 64, 32)  # voxels
UNSIGNED = "unsigned"  # patients with voxels of uint16
STORES = ("segmentation", "classification", UNSIGNED)


def measure(item: dict[str, str], job: Job, tell: Tell) -> None:
    """Make the stores at the same time, since each takes seconds of one core."""
    code = (
        "import json, sys; from gpu_report.data import make; from gpu_report.job import Job;"
        " make(sys.argv[1], Job.from_json(json.loads(sys.argv[2])))"
    )
    commands = {name: [sys.executable, "-c", code, name, json.dumps(job.to_json())] for name in STORES}
    processes = {name: subprocess.Popen(command, stdout=sys.stderr) for name, command in commands.items()}
    failed = [name for name, process in processes.items() if process.wait() != 0]
    if failed:
        raise SystemExit(f"the stores {', '.join(failed)} could not be made: see log.txt")
    tell(bytes={name: _size(job.store(name)) for name in STORES})


def make(name: str, job: Job) -> None:
    """Make one store."""
    raw = job.raw / name
    if name == "classification":
        make_phantom(raw, "brain-mri", QUICK_IMAGES if job.quick else IMAGES, seed=0)
    else:
        small = job.quick or name == UNSIGNED
        make_phantom(raw, "brats", PATIENTS, seed=0, shape=SMALL if small else None)
        if name == UNSIGNED:
            signed, raw = raw, job.raw / "widened"
            make_unsigned(signed, raw)
    prepare_dataset(inspect_source(raw).reader, raw, job.store(name))


def make_unsigned(raw: Path, into: Path) -> None:
    """Copy patients with voxels of uint16 above the range of int16."""
    for patient in sorted(path for path in raw.iterdir() if path.is_dir()):
        folder = into / patient.name
        folder.mkdir(parents=True)
        for file in patient.iterdir():
            if file.name.endswith("_seg.nii.gz"):
                shutil.copy(file, folder)
                continue
            image = nib.load(file)
            voxels = np.asanyarray(image.dataobj)
            wide = np.where(voxels > 0, voxels.astype(np.int64) * 30_000 // int(voxels.max()) + 30_000, 0)
            changed = nib.Nifti1Image(wide.astype(np.uint16), image.affine, image.header)
            changed.set_data_dtype(np.uint16)
            nib.save(changed, folder / file.name)


def _size(store: Path) -> int:
    return sum(file.stat().st_size for file in store.rglob("*") if file.is_file())
