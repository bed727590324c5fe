"""A machine without SLURM, GPU settings or a user's configuration, and made-up data and stores for the net."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from recording import Command, mask, write_programs

from hpc_tumor import cli

# Made-up runs, and what the commands of real clusters print, are those of the other tests.
sys.path += [str(Path(__file__).parents[1] / "results"), str(Path(__file__).parents[1] / "cluster")]


# A SLURM that has one job at a time, which waits in the queue until it is cancelled.
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


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with raw data of each kind and the stores made of it; tests read it or copy it."""
    folder = tmp_path_factory.mktemp("net")
    with pytest.MonkeyPatch.context() as patch:
        bare(patch, folder)
        patch.chdir(folder)
        for command in (
            "phantom raw-brats --dataset brats --cases 5 --seed 1 --shape 32,32,12",
            "phantom raw-brain-mri --dataset brain-mri --cases 24 --seed 1",
        ):
            assert cli.main(command.split()) == 0
        write_slices(folder / "raw-brats-h5", 3)
        for kind in ("brats", "brain-mri", "brats-h5"):
            assert cli.main(["prepare-data", f"raw-{kind}", f"{kind}.zarr", "--workers", "1"]) == 0
    return folder


def bare(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """The environment of a user who has set nothing, on a machine without other programs, 100 columns wide."""
    for name in list(os.environ):
        if name.startswith(("HPC_TUMOR_", "SLURM_", "SBATCH_", "PYTHONPATH", "CUDA_", "TERMINAL_WIDTH")):
            patch.delenv(name)
    for name in ("SCRATCH", "WORK", "FAST", "CINECA_SCRATCH", "LOCAL_SCRATCH", "JOBSCRATCH", "FORCE_COLOR"):
        patch.delenv(name, raising=False)
    (folder / "home" / "programs").mkdir(parents=True, exist_ok=True)
    for name, value in {
        "HOME": folder / "home", "HPC_TUMOR_CONFIG_DIR": folder / "home" / "configuration", "COLUMNS": 100,
        "PATH": folder / "home" / "programs", "NO_COLOR": 1, "OMP_NUM_THREADS": 1, "USER": "somebody",
    }.items():  # fmt: skip
        patch.setenv(name, str(value))


@pytest.fixture
def work(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a copy of raw data and stores, `WORK` in what is recorded."""
    bare(monkeypatch, tmp_path)
    folder = tmp_path / "work"
    shutil.copytree(base, folder, ignore=shutil.ignore_patterns("home"))
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def command(work: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run `hpc-tumor ARGUMENTS` in this process; gives exit code, stdout and stderr, masked."""
    places = {str(work): "WORK", str(work.parent): "HOME"}

    def run(arguments: list[str]) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.main(arguments[arguments[0] == "hpc-tumor" :])
        shown = capsys.readouterr()
        return code, mask(shown.out, places), mask(shown.err, places)

    return run


@pytest.fixture
def fake_slurm(work: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of SLURM's commands, as far as submitting needs them."""
    programs = work.parent / "home" / "programs"
    write_programs(programs, FAKE_SLURM)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    return programs


def write_slices(folder: Path, patients: int) -> None:
    """Patients of the Kaggle H5 edition: `volume_<n>_slice_<z>.h5` with 155 slices of 16 x 16 pixels each."""
    folder.mkdir()
    for patient in range(1, patients + 1):
        draw = np.random.default_rng([7, patient])
        for z in range(155):
            image, mask = np.zeros((16, 16, 4)), np.zeros((16, 16, 3), np.uint8)
            if 20 <= z < 140:
                image[3:-3, 3:-3] = draw.integers(-50, 900, (10, 10, 4)) / 256
            if 60 <= z < 90:
                mask[4:8, 4:8, z % 3] = 1
            with h5py.File(folder / f"volume_{patient}_slice_{z}.h5", "w") as file:
                file["image"], file["mask"] = image, mask
