"""Configuration files: the user's own, the profiles, and which cluster is meant."""

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
    """The profile that is meant, and why where it was not named; None where nothing says which.

    Raises:
        UsageError: there is no profile of that `name`, or it is not valid.
    """
    if name is not None:
        return find_profile(name), []
    try:
        profile, why = default_profile()
        return profile, [ok(why)]
    except ClusterNotNamedError:
        way = "doctor --cluster NAME; hpc-tumor clusters lists them; HPC_TUMOR_CLUSTER=NAME makes it the default"
        return None, [warning("SLURM is here, and nothing says which profile describes it", way)]
    except UsageError as problem:
        text = problem.brief if isinstance(problem, UnknownNameError) else str(problem)
        return None, [error(text.rstrip("."), "hpc-tumor clusters lists the profiles there are")]


def check_configuration() -> list[Finding]:
    """The user's configuration file, the variables, and all profiles that can be found."""
    path = settings.user_directory() / "config.toml"
    findings = []
    problems = {task: text for task, model in _MODELS.items() if (text := _problem(model))}
    if len(set(problems.values())) == 1 and len(problems) == len(_MODELS):
        findings.append(error(next(iter(problems.values())), "correct it: no run can be submitted before"))
    else:
        findings += [warning(f"runs of {task}: {text}", "correct it") for task, text in problems.items()]
    profiles, broken = list_profiles()
    findings += [warning(f"profile left out: {problem}", "correct the file, or remove it") for problem in broken]
    if not findings:
        where = f"{path} is valid" if path.is_file() else f"no {_home(path)}, which is fine"
        findings.append(ok(f"{_home(Path(where))}; {len(profiles)} cluster profiles, all valid"))
    return findings


def runs_folder(given: Path | None) -> Path:
    """The folder of runs: what was given, else the user's default, else ./runs."""
    if given is None:
        try:
            given = Path(settings.user_default("runs") or "runs")
        except UsageError:  # the configuration is broken, which is said elsewhere
            given = Path("runs")
    return expand_home(given).absolute()


def line_to_change(profile: ClusterProfile, section: str, line: str) -> str:
    """Line to change in the file of a profile, and where it stands."""
    file = profile_files().get(profile.name)
    shown = shlex.quote(_home(file)) if file else f"the profile {profile.name}"
    return f"in {shown}, [{section}]: {line}"


_MODELS = {"segmentation": "unet", "classification": "cnn"}


def _problem(model: str) -> str:
    """Fault for which a run of that network cannot be set up with the user's files and variables; "" where it could."""
    try:
        settings.resolve({"model": {"name": model}, "data": {"store": "store.zarr"}})
    except UsageError as problem:
        return str(problem).rstrip(".")
    return ""


def _home(path: Path) -> str:
    """`path` with ~ for the home directory."""
    text, home = str(path), str(home_directory() or "")
    return text.replace(f"{home}/", "~/", 1) if home and text.startswith(f"{home}/") else text
