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

PATIENTS, IMAGES = 4, 160
QUICK_PATIENTS, QUICK_IMAGES, QUICK_SHAPE = 4, 48, (64, 64, 32)
UNSIGNED = "unsigned"  # the store's name


def measure(item: dict[str, str], job: Job, tell: Tell) -> None:
    """Make patients and images at the same time, since both take seconds of one core."""
    tasks = ["segmentation", "classification"]
    code = "import json, sys; from gpu_report.data import make; from gpu_report.job import Job; " \
           "make(sys.argv[1], Job.from_json(json.loads(sys.argv[2])))"  # fmt: skip
    commands = [[sys.executable, "-c", code, task, json.dumps(job.to_json())] for task in tasks]
    processes = [subprocess.Popen(command, stdout=sys.stderr) for command in commands]
    for task, process in zip(tasks, processes, strict=True):
        if process.wait() != 0:
            raise SystemExit(f"the store for {task} could not be made: see log.txt")
    tell(stores={task: _size(job.store(task)) for task in [*tasks, UNSIGNED]})


def make(task: str, job: Job) -> None:
    """Make the stores of a task."""
    raw = job.raw / task
    if task == "classification":
        make_phantom(raw, "brain-mri", QUICK_IMAGES if job.quick else IMAGES, seed=0)
    else:
        shape = QUICK_SHAPE if job.quick else None
        make_phantom(raw, "brats", QUICK_PATIENTS if job.quick else PATIENTS, seed=0, shape=shape)
    prepare_dataset(inspect_source(raw).reader, raw, job.store(task))
    if task == "segmentation":
        unsigned = job.raw / UNSIGNED
        make_unsigned(raw, unsigned)
        prepare_dataset(inspect_source(unsigned).reader, unsigned, job.store(UNSIGNED))


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
