"""Check Python and the packages: installed, importable and compatible."""

from __future__ import annotations

import re

from hpc_tumor.doctor.finding import Finding, error, ok, warning
from hpc_tumor.doctor.probe import IMPORTS, ImportFailure, ImportFault, Probe

_REINSTALL = 'in the environment of hpc-tumor: pip install --upgrade --force-reinstall "{name}"'


def check_packages(probe: Probe) -> list[Finding]:
    """Check that the Python of `probe` can import everything that hpc-tumor needs."""
    findings = [_import_failed(probe, module, failure) for module, failure in probe.failed.items()]
    for name, needed in probe.too_old.items():
        text = f"{name} {probe.versions.get(name)} is too old: hpc-tumor needs {needed}"
        findings.append(error(text, f'pip install "{name}>={needed}"'))
    findings += _torchvision(probe)
    if not probe.failed:
        torch = probe.torch.build.version if probe.torch else "?"
        vision = probe.versions.get("torchvision") or "?"
        own = probe.versions.get("hpc-tumor")
        build = f" for {probe.torch.build.purpose}" if probe.torch else ""
        text = f"Python {probe.python}, hpc-tumor {own or 'from source'}; all {len(IMPORTS)} packages import"
        versions = f"torch {torch.partition('+')[0]}{build}, torchvision {vision.partition('+')[0]}"
        findings[:0] = [ok(text), ok(versions)]
    return findings


def _import_failed(probe: Probe, module: str, failure: ImportFailure) -> Finding:
    why, kind = failure.why, failure.kind
    name = next((key for key, value in IMPORTS.items() if value == module), module)
    if kind is ImportFault.ABSENT and probe.versions.get(name) is None:
        return error(f"{name} is not installed", f'pip install "{name}", with {probe.executable}')
    if kind is ImportFault.WRONG_CPU:
        return error(f"{module}: {why}: it was built for another CPU", _REINSTALL.format(name=name))
    if "GLIBC" in why or "CXXABI" in why:  # the dynamic loader's message
        way = "its wheel is too new for this system, or LD_LIBRARY_PATH points to other libraries: unset that first"
        return error(f"{module} cannot be imported: {why}", way)
    if kind is ImportFault.HANGS:
        return error(f"importing {module} {why}", "the file system of the Python environment may hang: check its load")
    return error(f"{module} cannot be imported: {why}", _REINSTALL.format(name=name))


def _torchvision(probe: Probe) -> list[Finding]:
    """Check that the versions match: torch 2.6 needs torchvision 0.21, and each minor version the next."""
    torch, vision = (re.match(r"(\d+)\.(\d+)", probe.versions.get(name) or "") for name in ("torch", "torchvision"))
    if torch is None or vision is None or torch[1] != "2" or vision[1] != "0":
        return []
    fitting = int(torch[2]) + 15
    if int(vision[2]) == fitting:
        return []
    text = f"torchvision {probe.versions['torchvision']} does not match torch {probe.versions['torch']}"
    return [warning(text, f'pip install "torchvision==0.{fitting}.*"')]


def compare_packages(here: Probe, there: Probe) -> list[Finding]:
    """Check that a node has the same Python and packages as the submitting machine."""
    if here.python != there.python or here.executable != there.executable:
        text = f"the node runs {there.executable} ({there.python}), this machine {here.executable} ({here.python})"
        return [error(text, "use one environment on a shared file system")]
    differing = [
        f"{name} {there.versions.get(name)} (here {version})"
        for name, version in here.versions.items()
        if there.versions.get(name) != version
    ]
    if differing:
        text = f"the node has other versions: {', '.join(differing)}"
        return [warning(text, "check whether a module, PYTHONPATH or ~/.local shadows yours")]
    return []
