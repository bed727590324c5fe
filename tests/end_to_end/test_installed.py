"""The package as users install it: from its wheel, without a network, outside the checkout, with old versions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
PRESETS = {path.name for path in (CHECKOUT / "jobs").glob("*.toml")}
PROFILES = {path.stem for path in (CHECKOUT / "slurm_templates").glob("*.toml")}


def call(*command: str | Path, folder: Path, **variables: str) -> str:
    """Standard output of a command that must succeed. It knows neither this checkout nor any registry of packages."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("HPC_TUMOR_", "PIP_", "PYTHONPATH"))
    }
    done = subprocess.run(
        [str(part) for part in command], cwd=folder, capture_output=True, text=True, check=False, timeout=1500,
        stdin=subprocess.DEVNULL,
        env={
            **kept, "OMP_NUM_THREADS": "1", "PIP_CONFIG_FILE": os.devnull, "HPC_TUMOR_CONFIG_DIR": str(folder / "none"),
            **variables,
        },
    )  # fmt: skip
    assert done.returncode == 0, f"{command}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


def install(python: Path, wheels: Path, *options: str) -> None:
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index", "--find-links", wheels]
    call(*pip, *options, "hpc-tumor", folder=wheels)


def walk_the_road(bin_: Path, work: Path) -> None:
    """From made-up scans to a table, with the installed command, in an empty folder."""

    def hpc_tumor(*arguments: str) -> str:
        return call(bin_ / "hpc-tumor", *arguments, folder=work)

    where = call(bin_ / "python", "-c", "import hpc_tumor; print(hpc_tumor.__file__)", folder=work)
    assert Path(where.strip()).is_relative_to(bin_.parent)
    assert "prepare-data" in hpc_tumor("--help")
    assert {profile["name"] for profile in json.loads(hpc_tumor("clusters", "--json"))} >= PROFILES
    hpc_tumor("phantom", "raw", "--dataset", "brats", "--cases", "4", "--shape", "32,32,12")
    hpc_tumor("prepare-data", "raw", "brats.zarr")
    hpc_tumor("audit", "brats.zarr", "--output", "audit.html")
    short = ("--set", "epochs=1", "--set", "batch_size=4", "--set", "filters=4")
    hpc_tumor("submit", "--model", "unet", "--data", "brats.zarr", "--cluster", "local", *short, "--wait")
    assert [run["state"] for run in json.loads(hpc_tumor("status", "--json"))] == ["finished"]
    assert "Segmentation" in hpc_tumor("collect", "--output", "results")
    assert "<svg" in (work / "results" / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_wheel_is_whole_and_works_outside_the_checkout(tmp_path: Path) -> None:
    """The packages it needs are those of this environment: they are found, but not its own way to the checkout."""
    wheels, environment, work = (tmp_path / name for name in ("wheels", "environment", "work"))
    work.mkdir()
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    call(*pip, "--wheel-dir", wheels, CHECKOUT, folder=tmp_path)
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    install(python, wheels, "--no-deps")
    (site,) = environment.glob("lib/python*/site-packages")
    presets, profiles = (site / "hpc_tumor" / name for name in ("jobs", "slurm_templates"))
    assert {path.name for path in presets.iterdir()} == PRESETS
    assert {path.stem for path in profiles.iterdir()} == PROFILES
    (site / "packages.pth").write_text(sysconfig.get_path("purelib") + "\n")
    walk_the_road(environment / "bin", work)


@pytest.mark.campaign
@pytest.mark.timeout(3600)
def test_a_folder_of_wheels_is_all_that_a_machine_without_a_network_needs(tmp_path: Path) -> None:
    """As docs say: pip wheel where there is a network, pip install --no-index where there is none."""
    with tempfile.TemporaryDirectory(dir=tmp_path) as folder:  # 10 GB, which pytest would keep
        wheels, environment, work = (Path(folder) / name for name in ("wheels", "environment", "work"))
        work.mkdir()
        pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--wheel-dir", str(wheels), str(CHECKOUT)]
        subprocess.run(pip, check=True, timeout=3000)
        venv.create(environment, with_pip=False)
        install(environment / "bin" / "python", wheels)
        walk_the_road(environment / "bin", work)


@pytest.mark.campaign
@pytest.mark.timeout(7200)
def test_the_quick_tests_pass_with_the_oldest_versions() -> None:
    command = ["bash", str(CHECKOUT / "tools" / "test.sh"), "--oldest", "--quick", "-q", "-p", "no:cacheprovider"]
    # The oldest torch is for CUDA 12, for which there is no null GPU.
    variables = {name: value for name, value in os.environ.items() if name != "HPC_TUMOR_REQUIRE_PROGRAMS"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=7000, env=variables)
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr[-3000:]
