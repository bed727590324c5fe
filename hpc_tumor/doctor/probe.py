"""Gather facts on this machine: packages, torch, GPUs, limits.

`python -m hpc_tumor.doctor.probe FILE` writes them to a file. They are gathered in a separate process, because an
import may crash or hang.
"""

from __future__ import annotations

import csv
import importlib
import json
import os
import platform
import re
import resource
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import Any

from hpc_tumor.provenance import versions
from hpc_tumor.system import compilers
from hpc_tumor.system.processes import python_variables, run_quietly
from hpc_tumor.system.resources import available_cpus
from hpc_tumor.system.torch_builds import TorchBuild

# Dependencies: name of the package and of the module, large ones last.
IMPORTS = {
    "numpy": "numpy", "numcodecs": "numcodecs", "google-crc32c": "google_crc32c", "zarr": "zarr", "nibabel": "nibabel",
    "h5py": "h5py", "isal": "isal", "pillow": "PIL", "safetensors": "safetensors", "scipy": "scipy",
    "submitit": "submitit", "typer": "typer", "rich": "rich", "pydantic": "pydantic", "platformdirs": "platformdirs",
    "jinja2": "jinja2", "surface-distance": "surface_distance", "matplotlib": "matplotlib",
    "torch": "torch", "torchvision": "torchvision",
}  # fmt: skip
_SECONDS = 180  # for all imports: slow from a cold shared file system
_LIMITS = {"open_files": "RLIMIT_NOFILE", "memory": "RLIMIT_AS"}


@dataclass(frozen=True)
class Gpu:
    """One GPU. `capability` as (9, 0), None if unknown; memory in GB (2^30 bytes).

    `missing_code`: why torch, which sees it, has no code for it, and what to install.
    """

    name: str
    capability: tuple[int, int] | None = None
    memory_gb: float | None = None
    missing_code: tuple[str, str] | None = None


@dataclass(frozen=True)
class TorchFacts:
    """The installed torch and the GPUs that it sees.

    Attributes:
        archs: supported architectures, as ("sm_80", "compute_90").
        refusal: torch's message if it cannot use a GPU; "" if it can or sees none.
        precision: the choice of `auto` here, and the reason.
        not_compiling: what is missing here to compile for a GPU; None if nothing is, or there is none.
    """

    build: TorchBuild
    archs: tuple[str, ...] = ()
    gpus: tuple[Gpu, ...] = ()
    refusal: str = ""
    nccl: str | None = None
    precision: tuple[str, str] = ("", "")
    not_compiling: str | None = None


class ImportFault(StrEnum):
    """Kind of a failed import."""

    ABSENT = "absent"  # no such module
    WRONG_CPU = "wrong-cpu"  # illegal instruction
    HANGS = "hangs"
    OTHER = "other"


@dataclass(frozen=True)
class ImportFailure:
    """Failed import of a module: the reason and its kind."""

    why: str
    kind: ImportFault = ImportFault.OTHER


@dataclass(frozen=True)
class Probe:
    """Facts on one machine. `failed`: modules that could not be imported. `limits`: None without a limit."""

    host: str
    python: str
    executable: str
    versions: dict[str, str | None]
    failed: dict[str, ImportFailure] = field(default_factory=dict)
    torch: TorchFacts | None = None
    too_old: dict[str, str] = field(default_factory=dict)  # package → minimum version
    gpus: tuple[Gpu, ...] | None = None  # listed by nvidia-smi; None without nvidia-smi
    driver: str | None = None
    cpus: int = 0
    limits: dict[str, int | None] = field(default_factory=dict)
    shared_memory: int | None = None  # bytes of /dev/shm
    interfaces: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return all fields, for `probe_from`."""
        return asdict(self)


def probe_from(values: Mapping[str, Any]) -> Probe:
    """Build a Probe from its JSON values."""

    def gpu(item: Mapping[str, Any]) -> Gpu:
        pairs = {key: tuple(item[key]) if item[key] else None for key in ("capability", "missing_code")}
        return Gpu(**{**item, **pairs})

    def gpus(items: Sequence[Mapping[str, Any]] | None) -> tuple[Gpu, ...] | None:
        return None if items is None else tuple(map(gpu, items))

    torch = values["torch"]
    if torch is not None:
        lists = {"archs": tuple(torch["archs"]), "precision": tuple(torch["precision"]), "gpus": gpus(torch["gpus"])}
        torch = TorchFacts(**{**torch, **lists, "build": TorchBuild(**torch["build"])})
    failed = {name: ImportFailure(item["why"], ImportFault(item["kind"])) for name, item in values["failed"].items()}
    own = {"torch": torch, "gpus": gpus(values["gpus"]), "interfaces": tuple(values["interfaces"])}
    return Probe(**{**values, **own, "failed": failed})


def probe_here() -> Probe:
    """Return the facts on this machine, as the Python of a job sees it. Never raises; failures are in the result."""
    with tempfile.NamedTemporaryFile(prefix="hpc-tumor-probe-", suffix=".json") as file:
        command = [sys.executable, "-m", "hpc_tumor.doctor.probe", file.name]
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", errors="replace", check=False,
                timeout=_SECONDS, env={**os.environ, **python_variables()},
            )  # fmt: skip
            code, printed = done.returncode, done.stderr
        except subprocess.TimeoutExpired as error:
            code, printed = None, (error.stderr or b"").decode(errors="replace")
        except OSError as error:
            code, printed = 1, str(error)
        with suppress(OSError, ValueError, KeyError, TypeError):
            if code == 0:
                return probe_from(json.loads(Path(file.name).read_text(encoding="utf-8")))
    return _without_imports(code, printed)


def gather() -> Probe:
    """Gather the facts in this process: import everything, printing each step to standard error first."""
    failed = {}
    for name in IMPORTS.values():
        print(f"importing {name}", file=sys.stderr, flush=True)
        try:
            importlib.import_module(name)
        except (Exception, SystemExit) as error:
            why = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            absent = isinstance(error, ModuleNotFoundError)  # the module or one of its dependencies
            failed[name] = ImportFailure(why, ImportFault.ABSENT if absent else ImportFault.OTHER)
    torch = None
    if "torch" not in failed:
        print("asking torch", file=sys.stderr, flush=True)
        torch = _torch_facts()
    return _machine(failed, torch)


def _machine(failed: dict[str, ImportFailure], torch: TorchFacts | None) -> Probe:
    gpus, driver = read_nvidia_smi()
    return Probe(
        host=socket.gethostname().partition(".")[0],
        python=platform.python_version(),
        executable=sys.executable,
        versions=versions(("hpc-tumor", *IMPORTS)),
        failed=failed,
        torch=torch,
        too_old=_too_old(),
        gpus=gpus,
        driver=driver,
        cpus=available_cpus(),
        limits={name: _limit(constant) for name, constant in _LIMITS.items()},
        shared_memory=_size_of(Path("/dev/shm")),
        interfaces=tuple(sorted(path.name for path in Path("/sys/class/net").glob("*") if path.name != "lo")),
    )


def _torch_facts() -> TorchFacts:
    from hpc_tumor.system import devices

    gpus, refusal = [], ""
    try:
        for gpu in filter(None, map(devices.find_gpu, range(devices.count_gpus()))):
            memory = devices.total_memory(gpu) / 1024**3
            gpus.append(Gpu(devices.name(gpu), devices.capability(gpu), memory, devices.missing_code(gpu)))
        if not gpus:
            devices.initialise()
    except Exception as error:
        refusal = " ".join(str(error).split())[:300]
    return TorchFacts(
        build=devices.build(),
        archs=devices.code_archs(),
        gpus=tuple(gpus),
        refusal=refusal,
        nccl=_nccl(),
        precision=_precision(),
        not_compiling=compilers.missing_for_gpu() if gpus else None,
    )


def _nccl() -> str | None:
    from hpc_tumor.system import devices

    with suppress(Exception):
        return devices.nccl_version()
    return None


def _precision() -> tuple[str, str]:
    with suppress(Exception):
        from hpc_tumor.system import devices
        from hpc_tumor.training.recipe import choose_precision, supported_formats

        if (gpu := devices.find_gpu()) is None:
            return " or ".join(sorted(supported_formats(devices.CPU))), "whichever is measured to be faster"
        chosen = choose_precision("auto", gpu)
        return chosen.name, chosen.reason
    return "", ""


def _without_imports(code: int | None, printed: str) -> Probe:
    """Return the facts without imports, and the import at which the process crashed, failed or hung."""
    lines = [line for line in printed.splitlines() if line.strip()]
    step = next((line for line in reversed(lines) if line.startswith(("importing ", "asking "))), "")
    module = step.rpartition(" ")[2] or "hpc_tumor"
    if code is None:
        failure = ImportFailure(f"did not finish within {_SECONDS} s", ImportFault.HANGS)
    elif code < 0:
        kind = ImportFault.WRONG_CPU if code == -signal.SIGILL else ImportFault.OTHER
        failure = ImportFailure(f"killed by {signal.Signals(-code).name}", kind)
    else:
        why = lines[-1] if lines else f"ended with exit code {code}"
        # Python's message also names a module that another one needs.
        failure = ImportFailure(why, ImportFault.ABSENT if "No module named" in why else ImportFault.OTHER)
    return _machine({module: failure}, None)


def read_nvidia_smi() -> tuple[tuple[Gpu, ...] | None, str | None]:
    """Return the GPUs that nvidia-smi lists and the driver version; None if it is missing or fails."""
    for query in ("name,memory.total,driver_version,compute_cap", "name,memory.total,driver_version"):
        done = run_quietly("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits", seconds=30)
        if done and done.returncode == 0:  # older versions reject the last field
            rows = [[cell.strip() for cell in row] for row in csv.reader(done.stdout.splitlines()) if row]
            gpus = tuple(Gpu(row[0], _capability(row[3:]), _gigabytes(row[1])) for row in rows)
            return gpus, rows[0][2] if rows else None
    return None, None


def _capability(cells: Sequence[str]) -> tuple[int, int] | None:
    match = re.fullmatch(r"(\d+)\.(\d+)", cells[0]) if cells else None
    return (int(match[1]), int(match[2])) if match else None


def _gigabytes(text: str) -> float | None:
    return int(text) / 1024 if text.isdigit() else None


def _too_old() -> dict[str, str]:
    """Return packages older than hpc-tumor's metadata requires, with the minimum version."""
    needed = {}
    with suppress(metadata.PackageNotFoundError):
        for text in metadata.requires("hpc-tumor") or []:
            match = re.match(r"([\w.-]+)\s*\(?>=\s*([\d.]+)\)?\s*(?:;(?!.*extra)|$)", text)
            if match and (installed := versions([match[1]])[match[1]]) and _numbers(installed) < _numbers(match[2]):
                needed[match[1]] = match[2]
    return needed


def _numbers(version: str) -> tuple[int, ...]:
    """Parse `2.14.1+cu130` as (2, 14, 1)."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, match[0].split("."))) if match else ()


def _limit(constant: str) -> int | None:
    soft = resource.getrlimit(getattr(resource, constant))[0]
    return None if soft == resource.RLIM_INFINITY else soft


def _size_of(folder: Path) -> int | None:
    with suppress(OSError):
        status = os.statvfs(folder)
        return status.f_blocks * status.f_frsize
    return None


def main(arguments: list[str]) -> int:
    """Write the facts on this machine to the given file."""
    Path(arguments[0]).write_text(json.dumps(gather().as_dict()), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
