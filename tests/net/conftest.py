"""A machine without SLURM, GPU settings or user configuration, and synthetic data and stores."""

from __future__ import annotations

import itertools
import os
import shutil
from pathlib import Path

import pytest
from recording import Command, mask
from surroundings import FAKE_SLURM, bare, write_images, write_programs, write_slices

from hpc_tumor import cli

DAY = 1_700_000_000  # modification time of raw data, in seconds since 1970


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with raw data of each kind and stores made from it; tests read or copy it."""
    folder = tmp_path_factory.mktemp("net")
    with pytest.MonkeyPatch.context() as patch:
        bare(patch, folder)
        patch.chdir(folder)
        command = "phantom raw-brats --dataset brats --cases 5 --seed 1 --shape 32,32,12"
        assert cli.main(command.split()) == 0
        write_images(folder / "raw-brain-mri", 24)
        write_slices(folder / "raw-brats-h5", 3)
        for path in folder.glob("raw-*/**/*"):
            os.utime(path, (DAY, DAY))  # the signature of a case contains it
        for kind in ("brats", "brain-mri", "brats-h5"):
            assert cli.main(["prepare-data", f"raw-{kind}", f"{kind}.zarr", "--workers", "1"]) == 0
    return folder


@pytest.fixture
def work(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Current folder: a copy of raw data and stores, `WORK` in the records."""
    bare(monkeypatch, tmp_path)
    profiles = tmp_path / "home" / "configuration" / "clusters"
    profiles.mkdir(parents=True)
    shutil.copy(Path(__file__).parents[1] / "cluster" / "local-test.toml", profiles)
    numbers = itertools.count()  # instead of random names: runs of the same second keep their order
    monkeypatch.setattr("secrets.token_hex", lambda length: f"{next(numbers):0{2 * length}x}")
    folder = tmp_path / "work"
    shutil.copytree(base, folder, ignore=shutil.ignore_patterns("home"))
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def command(work: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run `hpc-tumor ARGUMENTS` in this process; return exit code, stdout and stderr, masked."""
    places = {str(work): "WORK", str(work.parent): "HOME"}

    def run(arguments: list[str]) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.main(arguments[arguments[0] == "hpc-tumor" :])
        shown = capsys.readouterr()
        return code, mask(shown.out, places), mask(shown.err, places)

    return run


@pytest.fixture
def fake_slurm(work: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of the SLURM commands that submitting needs."""
    programs = work.parent / "home" / "programs"
    write_programs(programs, FAKE_SLURM)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    return programs
