"""Build the stub libraries of the null GPU for the installed torch, once per torch and source."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import platformdirs
import torch

SOURCES = Path(__file__).parent / "stubs"
PROGRAMS = ("g++", "nm")
OPTIONS = ["-std=c++17", "-O1", "-fPIC", "-Wall", "-Wextra", "-Wno-missing-field-initializers", "-Werror"]
# Functions without which a program can go on: they change or release something that the null GPU does not have.
HARMLESS = re.compile(r"Set|Destroy|Free|Finalize|Abort|Group(Start|End)|Profiler|TrimTo|Update|Retain|Release|Enable")


class UnavailableError(Exception):
    """The null GPU cannot be built here; the message is the reason."""


@dataclass(frozen=True)
class Library:
    """One stub library.

    Attributes:
        name: of the file and its soname; with it as the symbols' version if `versioned`.
        sources: files in `stubs/`.
        symbols: pattern of the functions that torch looks for in it. Those that no source defines are generated.
        refusal: status "not supported"; None: the function is a kernel launch.
        more: functions that others than torch look for.
    """

    name: str
    sources: tuple[str, ...]
    symbols: str
    refusal: int | None
    versioned: bool = True
    more: tuple[str, ...] = ()


TRITON = ("cuTensorMapEncodeTiled", "cuTensorMapEncodeIm2col", "cuLinkCreate_v2", "cuLinkAddData_v2", "cuLinkComplete")
# In the order in which they are loaded: the others report to the first.
LIBRARIES = (
    Library("libcudart.so.13", ("model.cpp", "runtime.cpp"), r"_*cuda[A-Z]", 801),
    Library("libcuda.so.1", ("driver.cpp",), r"cu[A-Z]", 801, versioned=False, more=TRITON),
    Library("libcublasLt.so.13", ("cublaslt.cpp",), r"cublasLt", 15),
    Library("libcublas.so.13", ("cublas.cpp",), r"cublas(?!Lt)", None),
    Library("libcudnn.so.9", ("cudnn.cpp",), r"cudnn", 3000),
    Library("libnccl.so.2", ("nccl.cpp",), r"nccl", 5, versioned=False),
)


def build() -> list[Path]:
    """Return the stub libraries in the order to preload them, built if this torch and these sources are new.

    Several processes may call this at once: one builds, the others wait.

    Raises:
        UnavailableError: this torch, platform or compiler will not do.
    """
    headers = _headers()
    folder = Path(platformdirs.user_cache_dir("hpc-tumor")) / "null-gpu"
    finished = folder / _key()
    paths = [finished / library.name for library in LIBRARIES]
    if not finished.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not finished.exists():
                with tempfile.TemporaryDirectory(dir=folder) as work:
                    _build_all(Path(work), headers)
                    (Path(work) / "libraries").rename(finished)
    return paths


def _headers() -> list[Path]:
    """Return the folders of CUDA's headers, which come with the wheels of torch and triton."""
    version = torch.version.cuda
    if sys.platform != "linux" or version is None or not version.startswith("13."):
        raise UnavailableError(f"the null GPU stands in for CUDA 13 on Linux; torch {torch.__version__} has another")
    for program in PROGRAMS:
        if shutil.which(program) is None:
            raise UnavailableError(f"the null GPU needs {program}")
    packages = Path(torch.__file__).parents[1]
    folders = [packages / f"nvidia/{name}/include" for name in ("cu13", "cudnn", "nccl")]
    folders.append(packages / "triton/backends/nvidia/include")
    wanted = ("cuda_runtime_api.h", "cudnn_graph.h", "nccl.h", "crt/host_defines.h")
    for folder, header in zip(folders, wanted, strict=True):
        if not (folder / header).exists():
            raise UnavailableError(f"the null GPU needs {folder / header}, which torch's wheels for CUDA 13 bring")
    return folders


def _key() -> str:
    parts = [torch.__version__, str(torch.version.cuda), str(Path(torch.__file__)), *OPTIONS]
    contents = [path.read_bytes() for path in (Path(__file__), *sorted(SOURCES.iterdir()))]
    return hashlib.sha256(b"\0".join([*map(str.encode, parts), *contents])).hexdigest()[:16]


def _build_all(work: Path, headers: list[Path]) -> None:
    (work / "libraries").mkdir()
    torch_libraries = Path(torch.__file__).parent / "lib"
    undefined = _symbols(sorted(torch_libraries.glob("lib*.so")), "--dynamic", "--undefined-only")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(lambda library: _build_one(library, work, headers, undefined), LIBRARIES):
            pass


def _build_one(library: Library, work: Path, headers: list[Path], undefined: set[str]) -> None:
    includes = [option for folder in headers for option in ("-isystem", str(folder))]
    objects = []
    for source in library.sources:
        objects.append(work / f"{source}.o")
        _run("g++", *OPTIONS, *includes, "-c", str(SOURCES / source), "-o", str(objects[-1]))
    defined = _symbols(objects, "--defined-only", "--extern-only")
    wanted = {name for name in undefined if re.match(library.symbols, name)} | {*library.more}
    generated = work / f"{library.name}.cpp"
    generated.write_text(_stubs(library, sorted(wanted - defined)), encoding="utf-8")
    script = work / f"{library.name}.map"
    script.write_text(f"{library.name} {{ global: *; }};\n", encoding="utf-8")
    version = [f"-Wl,--version-script={script}"] if library.versioned else []
    _run(
        "g++", *OPTIONS, "-shared", "-I", str(SOURCES), *map(str, objects), str(generated),
        f"-Wl,-soname,{library.name}", *version, "-ldl", "-lpthread", "-o", str(work / "libraries" / library.name),
    )  # fmt: skip


def _stubs(library: Library, names: Iterable[str]) -> str:
    """Return C++ for the functions that no source defines."""
    lines = ['#include "model.h"']
    for name in names:
        if HARMLESS.search(name):
            body = "return 0;"
        elif library.refusal is None:
            body = f'return null_gpu_launch("{name}", true), 0;'
        else:
            body = f'return null_gpu_refuse("{name}", {library.refusal});'
        lines.append(f"EXPORT int {name}() {{ {body} }}")
    return "\n".join(lines) + "\n"


def _symbols(files: Iterable[Path], *options: str) -> set[str]:
    lines = _run("nm", "-P", *options, *map(str, files)).splitlines()
    return {line.split()[0].partition("@")[0] for line in lines if line and not line.endswith(":")}


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return done.stdout
