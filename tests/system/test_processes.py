"""Python processes that are started from a folder full of traps: files that have the names of modules."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

from hpc_tumor.data.phantom.dataset import make_phantom
from hpc_tumor.system import processes
from hpc_tumor.system.processes import import_path, package_home, python_variables

TRAPS = ("types", "enum", "signal", "pickle", "numpy", "torch", "hpc_tumor")
BEFORE_US = ("types", "hpc_tumor")  # what `python -m hpc_tumor` finds in the current folder before it comes to us


def set_traps(folder: Path, *names: str) -> Path:
    """A folder with modules that must not be imported."""
    folder.mkdir(exist_ok=True)
    for name in names or TRAPS:
        (folder / f"{name}.py").write_text("raise SystemExit(f'{__file__} was imported')\n")
    return folder


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    return subprocess.run(
        [sys.executable, *command], cwd=folder, env={**variables, "OMP_NUM_THREADS": "1"}, capture_output=True,
        text=True, timeout=200, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_a_conversion_with_workers(tmp_path: Path) -> None:
    make_phantom(tmp_path / "raw", "brats", 3, 1, shape=(32, 32, 12))
    program = tmp_path / "bin" / "hpc-tumor"  # as an installation makes it
    program.parent.mkdir()
    program.write_text("import sys\nfrom hpc_tumor.cli import main\nsys.exit(main())\n")
    arguments = ["prepare-data", str(tmp_path / "raw"), "--workers", "2", "--json"]
    traps = set_traps(tmp_path / "traps")
    done = run([str(program), *arguments, str(tmp_path / "a.zarr")], traps)
    assert done.returncode == 0, done.stderr
    for name in BEFORE_US:
        (traps / f"{name}.py").unlink()
    done = run(["-m", "hpc_tumor", *arguments, str(tmp_path / "b.zarr")], traps)
    assert done.returncode == 0, done.stderr


def test_an_empty_entry_of_the_path_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`export PYTHONPATH=FOLDER:$PYTHONPATH` leaves one; Python takes it for the current folder."""
    traps = set_traps(tmp_path / "traps", "types")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "of_the_user.py").touch()
    monkeypatch.chdir(traps)
    monkeypatch.setenv("PYTHONPATH", f":{tmp_path / 'mine'}::{package_home()}:")
    for code in (None, package_home()):
        code_of_user = "import hpc_tumor, of_the_user, types"
        variables = {**os.environ, **python_variables(code)}
        subprocess.run([sys.executable, "-c", code_of_user], env=variables, check=True)


def test_where_modules_of_this_process_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, other = str(set_traps(tmp_path / "traps", "types")), str(tmp_path / "other")
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "path", ["", other, here, str(package_home())])
    monkeypatch.setenv("PYTHONPATH", "")
    assert import_path() == [other, str(package_home())]
    monkeypatch.setenv("PYTHONPATH", here)  # the user's own wish
    assert import_path() == [other, here, str(package_home())]
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.chdir(package_home())  # a checkout
    assert str(package_home()) in import_path()


def test_a_folder_that_was_removed_is_left_out_of_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    monkeypatch.setattr(sys, "path", ["", "/other"])
    assert import_path() == ["/other"]


@pytest.mark.parametrize(
    ("platform", "expected", "parents"),
    [("linux", "1", [2]), ("linux", None, [2, 1]), ("darwin", None, [2, 2, 1])],
    ids=["died before", "died while it was asked", "without prctl"],
)
def test_a_process_ends_with_its_parent(
    monkeypatch: pytest.MonkeyPatch, platform: str, expected: str | None, parents: list[int]
) -> None:
    ids, signals, ended = iter(parents), [], threading.Event()

    def kill(process: int, number: int) -> None:
        signals.append((process, number))
        ended.set()

    monkeypatch.setattr(processes, "os", SimpleNamespace(getppid=lambda: next(ids), getpid=lambda: 7, kill=kill))
    monkeypatch.setattr(processes, "sys", SimpleNamespace(platform=platform))
    monkeypatch.setattr(processes, "ctypes", MagicMock())
    monkeypatch.setattr(processes, "time", MagicMock())
    processes.end_with_parent(signal.SIGTERM, expected)
    assert ended.wait(10)
    assert signals == [(7, signal.SIGTERM)]
