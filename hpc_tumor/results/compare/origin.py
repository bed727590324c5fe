"""Provenance of a run, and the commands that train it again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hpc_tumor.config import Experiment
from hpc_tumor.earlier import with_earlier_defaults
from hpc_tumor.errors import HpcTumorError
from hpc_tumor.results.read.run_result import RunResult
from hpc_tumor.results.read.values import section, text
from hpc_tumor.run_dir import RunDir, read_json
from hpc_tumor.settings import merge, preset
from hpc_tumor.validation import build

_OWN_OPTIONS = {"model.name", "data.store", "hardware.gpus", "task"}  # not set by --set


@dataclass(frozen=True)
class Origin:
    """Provenance of one run: commands that train it again, facts of its training, and all settings, as text."""

    run: str
    entry: str
    commands: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]
    settings: tuple[tuple[str, str], ...]


def read_origin(run: RunResult, entry: str) -> Origin:
    """Read the origin of a run from its files; unknown facts are left out."""
    run_dir = RunDir(run.place)
    config, provenance = read_json(run_dir.config) or {}, read_json(run_dir.provenance) or {}
    git, versions = section(provenance.get("git")), section(provenance.get("versions"))
    store, command = section(provenance.get("store")), provenance.get("command")
    command_line = shlex.join(map(str, command)) if isinstance(command, list) else None
    version_list = ", ".join(f"{name} {version}" for name, version in list(versions.items())[:12] if version)
    facts = {
        "command": text(command_line),
        "trained": text(provenance.get("time")),
        "host": text(provenance.get("host")),
        "device": f"{run.gpus or 1} × {run.device}" if run.device else None,
        "nodes": None if run.nodes is None else str(run.nodes),
        "precision": run.precision,
        "commit": _commit(git),
        "versions": text(version_list),
        "platform": text(provenance.get("platform")),
        "store": text(store.get("path")) or run.store,
        "fingerprint of the store": run.fingerprint or text(store.get("fingerprint")),
        "surface scores by": run.surfaces,
        "run directory": run.path,
    }
    settings = ((name, _shown(value)) for name, value in _flat(config).items())
    return Origin(
        run.run, entry, tuple(commands_of(config, git)), tuple((name, value) for name, value in facts.items() if value),
        tuple((text(name) or "?", text(value) or "–") for name, value in settings),
    )  # fmt: skip


def commands_of(config: Mapping[str, Any], git: Mapping[str, Any]) -> list[str]:
    """Return the commands that train a run with these settings again; empty if this version rejects the settings."""
    try:
        name, store = section(config.get("model")).get("name"), section(config.get("data")).get("store")
        task = config.get("task")
        base = merge(preset(str(name)), {"model": {"name": name}, "data": {"store": store}, "task": task})
        usual = _flat(build(Experiment, base, where=lambda _: "").model_dump(mode="json"))
        settings = _flat(build(Experiment, with_earlier_defaults(config), where=lambda _: "").model_dump(mode="json"))
    except HpcTumorError:
        return []
    gpus = str(settings["hardware.gpus"])
    words = ["hpc-tumor", "submit", "--model", str(name), "--gpus", gpus, "--data", str(store)]
    for key, value in settings.items():
        if key not in _OWN_OPTIONS and value != usual.get(key):
            words += ["--set", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
    commit = text(git.get("commit"))
    return ([f"git checkout {shlex.quote(commit)}"] if commit else []) + [shlex.join(words)]


def _commit(git: Mapping[str, Any]) -> str | None:
    commit = text(git.get("commit"))
    if commit is None:
        return None
    return commit + (" with uncommitted changes (see provenance.json)" if git.get("dirty") else "")


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
