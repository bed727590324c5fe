"""Requirements of the compilers, and folders in which they keep their results."""

import importlib.util
import os
import shutil
import sysconfig
from pathlib import Path

import pytest

from hpc_tumor.system import compilers


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let no variable name a compiler or a cache; others that a test sets are removed."""
    for variable in ("CC", compilers.INDUCTOR, compilers.TRITON):
        monkeypatch.setenv(variable, "")
        monkeypatch.delenv(variable)
    monkeypatch.setenv("HPC_TUMOR_CACHE_DIR", str(tmp_path / "cache"))


def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *names: str) -> None:
    """Let only these be there: triton, Python.h, and compilers by name."""
    if "Python.h" in names:
        (tmp_path / "Python.h").touch()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True if name in names else None)
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}" if name in names else None)
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(tmp_path)})


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        (["gcc", "Python.h"], "the package triton"),
        (["triton", "Python.h", "g++"], "a C compiler (gcc, clang, or one that CC names)"),
        (["triton", "gcc"], "the header files of Python (python3-dev, python3-devel)"),
        (["triton", "gcc", "Python.h"], None),
        (["triton", "clang", "Python.h"], None),
    ],
)
def test_triton_needs_a_c_compiler_and_the_headers_of_python(
    names: list[str], missing: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    installed(monkeypatch, tmp_path, *names)
    assert compilers.missing_for_gpu() == missing


def test_the_compiler_that_cc_names_must_exist(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    installed(monkeypatch, tmp_path, "triton", "Python.h", "gcc", "icx")
    monkeypatch.setenv("CC", "icx")
    assert compilers.missing_for_gpu() is None
    monkeypatch.setenv("CC", "nvc")
    assert compilers.missing_for_gpu() == "the C compiler that CC names (nvc)"


def test_results_are_kept_in_the_cache_by_version_of_torch(tmp_path: Path) -> None:
    assert compilers.use_lasting_caches("2.14.1+cu130") is None
    folder = tmp_path / "cache" / "compiled" / "torch-2.14.1+cu130"
    assert list(folder.iterdir()) == []
    assert folder.stat().st_mode & 0o777 == 0o700
    assert compilers.inductor_cache() == folder / "torchinductor"
    assert os.environ[compilers.TRITON] == str(folder / "triton")


def test_folders_that_the_user_chose_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(compilers.INDUCTOR, "/mine")
    assert compilers.use_lasting_caches("2.6.0") is None
    assert compilers.inductor_cache() == Path("/mine")
    assert Path(os.environ[compilers.TRITON]).is_relative_to(tmp_path)
    monkeypatch.setenv(compilers.TRITON, "/other")
    shutil.rmtree(tmp_path / "cache")
    assert compilers.use_lasting_caches("2.6.0") is None
    assert not (tmp_path / "cache").exists()


def test_a_cache_that_cannot_be_written_is_replaced_by_a_temporary_one(tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    line = compilers.use_lasting_caches("2.6.0")
    assert line is not None
    assert f"{tmp_path / 'cache'}/compiled/torch-2.6.0 cannot be written (Not a directory)" in line
    folder = compilers.inductor_cache()
    assert folder is not None
    assert folder.parent.is_dir()
    assert not folder.is_relative_to(tmp_path)
    shutil.rmtree(folder.parent)
