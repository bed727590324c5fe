"""Compilers of torch.compile and of Triton's kernels: what they need on a machine, and where they keep their results.

Both name their files by hashes of what they compile, and rename them into place when they are complete: ranks, nodes
and runs may fill and read one folder at once.
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import shutil
import sysconfig
import tempfile
from pathlib import Path

from hpc_tumor.system import measurements

INDUCTOR, TRITON = "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"


def missing_for_gpu() -> str | None:
    """Return what this machine lacks to compile for a GPU, where Triton builds its launcher in C; None if nothing."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton"
    named = os.environ.get("CC")
    if named is not None and shutil.which(named) is None:
        return f"the C compiler that CC names ({named})"
    if named is None and not any(shutil.which(name) for name in ("gcc", "clang")):
        return "a C compiler (gcc, clang, or one that CC names)"
    if not Path(sysconfig.get_paths()["include"], "Python.h").is_file():
        return "the header files of Python (python3-dev, python3-devel)"
    return None


def missing_for_cpu() -> str | None:
    """Return what this machine lacks to compile for its CPU; None if nothing."""
    return None if any(shutil.which(name) for name in ("g++", "c++", "clang++")) else "a C++ compiler (g++)"


def use_lasting_caches(version: str) -> str | None:
    """Let the compilers of this process keep their results in the user's cache, by `version` of torch.

    TORCHINDUCTOR_CACHE_DIR and TRITON_CACHE_DIR are respected. To call before torch.compile is first used. If the
    user's cache cannot be written, a temporary folder serves this process alone.

    Returns a line about that for the log, else None.
    """
    if INDUCTOR in os.environ and TRITON in os.environ:
        return None
    folder, fault = measurements.cache_folder(), "there is no home directory"
    if folder is not None:
        folder = folder / "compiled" / f"torch-{version}"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as trial:
                trial.write(b"written")
        except OSError as error:
            folder, fault = None, f"{folder} cannot be written ({error.strerror})"
    if folder is None:
        folder = Path(tempfile.mkdtemp(prefix="hpc-tumor-compiled-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    else:
        fault = ""
    for variable in (INDUCTOR, TRITON):
        os.environ.setdefault(variable, str(folder / variable.partition("_")[0].lower()))
    return (
        f"compiled code is not kept for later runs: {fault}; HPC_TUMOR_CACHE_DIR names another folder"
        if fault
        else None
    )


def inductor_cache() -> Path | None:
    """Return the folder in which Inductor keeps its results; None if nothing says so."""
    named = os.environ.get(INDUCTOR)
    return Path(named).absolute() if named else None
