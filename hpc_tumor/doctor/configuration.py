"""Check the user's configuration and the cluster profiles, and choose the cluster."""

from __future__ import annotations

import shlex
from pathlib import Path

from hpc_tumor import settings
from hpc_tumor.cluster.describe.profiles import (
    ClusterNotNamedError,
    default_profile,
    find_profile,
    list_profiles,
    profile_files,
)
from hpc_tumor.config import ClusterProfile
from hpc_tumor.doctor.finding import Finding, error, ok, warning
from hpc_tumor.errors import UnknownNameError, UsageError
from hpc_tumor.system.resources import expand_home, home_directory


def choose_cluster(name: str | None) -> tuple[ClusterProfile | None, list[Finding]]:
    """Return the cluster profile, with findings on the choice if `name` is None; None if nothing names a cluster.

    Raises:
        UsageError: the profile `name` does not exist or is not valid.
    """
    if name is not None:
        return find_profile(name), []
    try:
        profile, why = default_profile()
        return profile, [ok(why)]
    except ClusterNotNamedError:
        way = "doctor --cluster NAME; hpc-tumor clusters lists them; HPC_TUMOR_CLUSTER=NAME makes it the default"
        return None, [warning("SLURM is installed, but no cluster profile is chosen", way)]
    except UsageError as problem:
        text = problem.brief if isinstance(problem, UnknownNameError) else str(problem)
        return None, [error(text.rstrip("."), "hpc-tumor clusters lists the profiles")]


def check_configuration() -> list[Finding]:
    """Check the user's configuration file, the HPC_TUMOR_* variables and all profiles."""
    path = settings.user_directory() / "config.toml"
    findings = []
    problems = {task: text for task, model in _MODELS.items() if (text := _problem(model))}
    if len(set(problems.values())) == 1 and len(problems) == len(_MODELS):
        findings.append(error(next(iter(problems.values())), "correct it: no run can be submitted until then"))
    else:
        findings += [warning(f"runs of {task}: {text}", "correct it") for task, text in problems.items()]
    profiles, broken = list_profiles()
    findings += [warning(f"profile ignored: {problem}", "correct or remove the file") for problem in broken]
    if not findings:
        file = f"{_home(path)} is valid" if path.is_file() else f"no {_home(path)} (optional)"
        findings.append(ok(f"{file}; {len(profiles)} cluster profiles, all valid"))
    return findings


def runs_folder(runs: Path | None) -> Path:
    """Return the runs folder: `runs` if given, else the user's default, else ./runs."""
    if runs is None:
        try:
            runs = Path(settings.user_default("runs") or "runs")
        except UsageError:  # an invalid configuration, reported by check_configuration
            runs = Path("runs")
    return expand_home(runs).absolute()


def profile_edit(profile: ClusterProfile, section: str, line: str) -> str:
    """Describe an edit to a profile: the file, the section and the new line."""
    file = profile_files().get(profile.name)
    shown = shlex.quote(_home(file)) if file else f"the profile {profile.name}"
    return f"in {shown}, [{section}]: {line}"


_MODELS = {"segmentation": "unet", "classification": "cnn"}


def _problem(model: str) -> str:
    """Return why the user's files and variables prevent a run of that network; "" if they do not."""
    try:
        settings.resolve({"model": {"name": model}, "data": {"store": "store.zarr"}})
    except UsageError as problem:
        return str(problem).rstrip(".")
    return ""


def _home(path: Path) -> str:
    """Return `path` with ~ for the home directory."""
    text, home = str(path), str(home_directory() or "")
    return text.replace(f"{home}/", "~/", 1) if home and text.startswith(f"{home}/") else text
