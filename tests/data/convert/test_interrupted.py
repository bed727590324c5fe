"""kill -9 at any moment, then the same command again: the store ends identical to one made without interruption."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from cheng_samples import arrays, write_mat
from raw_samples import picture, tree, write_case, write_patients, write_pictures

from hpc_tumor.data.phantom.dataset import make_phantom

HERE = Path(__file__).parents[1]
HOWS = ("new", "update", "overwrite")
ERRORS = ("ENOSPC", "EIO", "ESTALE", "EACCES", "ENOENT")


def write_sources(folder: Path, kind: str) -> tuple[Path, Path]:
    """A small source, and the same with one case changed, one new and one gone."""
    source, changed = folder / "raw", folder / "changed"
    if kind == "masks":
        for number in (1, 59, 60):
            write_mat(source / f"{number}.mat", arrays(number))
        shutil.copytree(source, changed)
        write_mat(changed / "1.mat", arrays(7))
        write_mat(changed / "2.mat", arrays(8))
        (changed / "60.mat").unlink()
    elif kind == "images":
        write_pictures(source, 1, twins=False)
        shutil.copytree(source, changed)
        picture(7).save(changed / "Training" / "glioma" / "Tr-gl (0).png")
        picture(8).save(changed / "Training" / "notumor" / "new.png")
        (changed / "Testing" / "glioma" / "Te-gl (0).png").unlink()
    else:
        write_patients(source, 3)
        shutil.copytree(source, changed)
        write_case(changed / "BraTS20_Training_001", seed=7)
        write_case(changed / "BraTS20_Training_009", seed=8)
        shutil.rmtree(changed / "BraTS20_Training_002")
    return source, changed


@pytest.fixture
def quick(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: thousands of fsyncs are waited for elsewhere."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


def interrupt(folder: Path, kind: str, which: str, *plans: str) -> int:
    """Return the number of conversions that killing.py ended."""
    sources = map(str, write_sources(folder, "images" if kind == "several" else kind))
    if kind == "several":
        write_pictures(folder / "kept", 1)
    command = [sys.executable, str(HERE / "killing.py"), kind, which, *sources, str(folder), *plans]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return int(done.stdout)


@pytest.mark.parametrize(
    "kind", ["images", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("masks", "patients", "several"))]
)
def test_killed_at_each_kind_of_step(quick: Path, kind: str) -> None:
    assert interrupt(quick, kind, "sample", *(f"{how}=kill" for how in HOWS)) >= 40


@pytest.mark.slow
def test_an_update_of_an_earlier_store_killed_at_each_kind_of_step(quick: Path) -> None:
    assert interrupt(quick, "images", "sample", "earlier=kill") >= 14


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["images", "patients"])
def test_a_disk_that_fails_from_each_kind_of_step_on(quick: Path, kind: str) -> None:
    """One error after another, so that each of them comes at some kinds of step."""
    assert interrupt(quick, kind, "sample", f"update={','.join(ERRORS)}", f"new={','.join(ERRORS)}") >= 26


@pytest.mark.campaign
@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("kind", ["images", "masks", "patients", "several"])
def test_killed_at_every_step(quick: Path, kind: str, how: str) -> None:
    """Right before every rename, new folder, removal and sync, and with every file opened but still empty."""
    assert interrupt(quick, kind, "all", f"{how}=kill") > 80


@pytest.mark.campaign
@pytest.mark.parametrize("what", ERRORS)
@pytest.mark.parametrize("kind", ["images", "patients"])
def test_a_disk_that_fails_from_any_step_on(quick: Path, kind: str, what: str) -> None:
    """One clear error each time, and the same command completes the store when the disk is back."""
    assert interrupt(quick, kind, "all", f"update={what}") > 80


def group_of(process: subprocess.Popen[bytes]) -> list[int]:
    """Processes of its session that still live."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == process.pid and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rounds", "kind"),
    [
        (3, "brats"), pytest.param(30, "brats", marks=pytest.mark.campaign),
        pytest.param(30, "brain-mri", marks=pytest.mark.campaign),
    ],
)  # fmt: skip
def test_command_killed_at_random(tmp_path: Path, kind: str, rounds: int) -> None:
    """The real command with its workers, killed many times in a row at random moments until it gets to its end.

    Now the whole process group is killed, now the command alone: its workers must follow it by themselves.
    """
    source, store = tmp_path / "raw", tmp_path / "store.zarr"
    make_phantom(source, kind, 24 if kind == "brats" else 400, 1, shape=(48, 48, 16) if kind == "brats" else None)
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "hpc_tumor", "prepare-data", str(source)]
    began = time.monotonic()
    subprocess.run([*command, str(tmp_path / "fresh.zarr"), "--workers", "2"], check=True, env=variables)
    seconds, wanted = time.monotonic() - began, tree(tmp_path / "fresh.zarr")
    draw, kills = np.random.default_rng(3), 0
    for round_ in range(rounds):
        if round_ % 5 == 4:
            shutil.rmtree(store, ignore_errors=True)
        options = {"env": variables, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        with subprocess.Popen([*command, str(store), "--workers", "2"], start_new_session=True, **options) as process:
            try:
                process.wait(draw.uniform(0.3, 1.0) * seconds)
            except subprocess.TimeoutExpired:
                (os.killpg if round_ % 2 else os.kill)(process.pid, signal.SIGKILL)
                kills += 1
            process.wait()
            end = time.monotonic() + 10
            while (left := group_of(process)) and time.monotonic() < end:
                time.sleep(0.05)
            assert not left
    assert kills > rounds // 4  # more where nothing else keeps the machine busy
    subprocess.run([*command, str(store), "--workers", "2"], check=True, env=variables)
    assert tree(store) == wanted
