"""Resolve settings (option > HPC_TUMOR_* variable > job file > user's configuration > preset of the network).

Also compares the settings of a resumed run with its original ones.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import platformdirs

from hpc_tumor.config import Experiment
from hpc_tumor.earlier import earlier_defaults
from hpc_tumor.errors import DataError, UsageError, unknown
from hpc_tumor.system.resources import NO_HOME
from hpc_tumor.validation import build, fields_of, parse_text, unknown_setting

_PACKAGE = Path(__file__).parent
_SECTIONS = ("model", "data", "recipe", "hardware", "scoring")
_USER_KEYS = ("cluster", "account", "runs")  # of config.toml, beside the sections
_FIELDS = {name: field for name, field in fields_of(Experiment).items() if name != "task"}  # the network sets the task
_NAMES = list(_FIELDS)
_PREFIX = "HPC_TUMOR_"
# Variables that are not settings.
_OTHER_VARIABLES = {
    f"{_PREFIX}{name}"
    for name in (
        "CLUSTER", "ACCOUNT", "RUNS", "CONFIG_DIR", "CACHE_DIR", "HINTS", "REAL_DATA", "REQUIRE_SLURM",
        "REQUIRE_PROGRAMS", "PARENT", "STEP_DELAY",
    )
}  # fmt: skip
# Settings that may change when a run is resumed: the experiment stays the same, bit for bit or, with another number of
# ranks, threads or micro-batches, up to the order of additions. All others, including later ones, must not change.
MAY_CHANGE = frozenset({
    "data.store", "data.split_file",  # their contents are compared instead
    "data.conflicts",  # the number of images left out is compared instead
    "data.keep", "data.keep_gb", "hardware.gpus", "hardware.threads", "hardware.timeout_minutes", "checkpoint_minutes",
    "keep_every", "profile", "tensorboard", "scoring.flips", "scoring.clean",
    "hardware.precision",  # the format in use is compared instead
    "hardware.accumulate",  # like the number of ranks: another order of sums, batch norm over other samples
    "hardware.compile",  # only to auto, which keeps the previous choice
    "hardware.graph",
    "recipe.epochs",  # only if the learning rate does not depend on the number of epochs
})  # fmt: skip


def shipped(folder: str) -> Path:
    """Return the folder of presets (`jobs`) or profiles (`slurm_templates`), of the installed package or checkout."""
    inside = _PACKAGE / folder
    return inside if inside.is_dir() else _PACKAGE.parent / folder


def user_directory() -> Path:
    """Return the user's configuration directory, or HPC_TUMOR_CONFIG_DIR.

    Raises UsageError if neither that nor the user's home is known.
    """
    if directory := os.environ.get("HPC_TUMOR_CONFIG_DIR"):
        return Path(directory)
    try:
        folder = Path(platformdirs.user_config_dir("hpc-tumor"))
    except RuntimeError:
        folder = Path()
    if not folder.is_absolute():  # older versions of platformdirs do not expand ~
        raise UsageError(f"no configuration directory: {NO_HOME}. Set HOME, or HPC_TUMOR_CONFIG_DIR to a folder.")
    return folder


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file. Raises UsageError if it does not exist or is not TOML, with the line."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist.") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path} cannot be read as TOML: {error}") from None


def user_configuration() -> dict[str, Any]:
    """Read the user's `config.toml`: `cluster`, `account`, `runs` and sections of settings; empty without a file."""
    path = user_directory() / "config.toml"
    contents = read_toml(path) if path.is_file() else {}
    for key in _USER_KEYS:
        if key in contents and not isinstance(contents[key], str):
            raise UsageError(f"{path}: {key} = {contents[key]!r} is not a string: put it in quotes.")
    return contents


def user_default(key: str) -> str | None:
    """Return a user default: the variable HPC_TUMOR_<KEY>, else `key` in the configuration."""
    value = os.environ.get(f"HPC_TUMOR_{key.upper()}") or user_configuration().get(key)
    return str(value) if value is not None else None


def parse_assignments(texts: Sequence[str]) -> dict[str, Any]:
    """Parse the values of --set, `["recipe.epochs=2", "seed=1"]`, as nested settings.

    The section may be omitted if the name is unique.
    """
    values: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--set {text!r} has no value: use KEY=VALUE, for example recipe.epochs=2.")
        name = full_name(key.strip(), "--set")
        put(values, name, parse_value(name, value.strip()))
    return values


def parse_value(name: str, text: str) -> Any:
    """Parse the value of the setting `name`; texts and paths stay text even if they look like numbers."""
    return parse_text(_FIELDS[name], text)


def full_name(key: str, where: str) -> str:
    """Expand `epochs` to `recipe.epochs`. Raises UsageError, naming `where`, for an unknown or ambiguous name."""
    if key in _NAMES:
        return key
    matches = [name for name in _NAMES if name.rpartition(".")[2] == key]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise UsageError(f"{where}: {key!r} is ambiguous: use {' or '.join(matches)}.")
    raise UsageError(f"{where}: {unknown_setting(key, _NAMES)}")


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Merge nested dictionaries, later ones overriding earlier ones, into a new dictionary."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            old = merged.get(key)
            nested = isinstance(value, Mapping)
            merged[key] = merge(old if isinstance(old, dict) else {}, value) if nested else value
    return merged


def preset(model: str) -> dict[str, Any]:
    """Return the published recipe of `model`, from jobs/<model>.toml. Raises UsageError for an unknown model."""
    from hpc_tumor.models import MODELS

    if model not in MODELS:
        raise unknown("model", model, MODELS)
    path = shipped("jobs") / f"{model}.toml"
    return settings_in(read_toml(path), str(path))


def resolve(
    overrides: Mapping[str, Any],
    job: Mapping[str, Any] | None = None,
    where: str = "job file",
    flag: Callable[[str], str] = lambda name: "--set",
) -> Experiment:
    """Resolve the settings of one run: `overrides` (options) > variables > `job` > user's file > preset.

    Args:
        where: name of the job file in errors.
        flag: returns the option with which the user gave a setting.
    """
    from hpc_tumor.models import MODELS

    path = str(user_directory() / "config.toml")
    user = {key: value for key, value in user_configuration().items() if key not in _USER_KEYS}
    layers: list[tuple[Mapping[str, Any], Callable[[str], str]]] = [
        (settings_in(user, path), lambda name: path),
        (job or {}, lambda name: where),
        (_variables(), _variable),
        (overrides, flag),
    ]
    upper = merge(*(values for values, _ in layers))

    def source(name: str) -> str:
        return next((label(name) for values, label in reversed(layers) if holds(values, name)), "settings")

    model = upper.get("model", {}).get("name")
    if model is None:
        raise UsageError(f"no model given. Choose one with --model: {', '.join(MODELS)}.")
    if not isinstance(model, str):
        raise UsageError(f"{source('model.name')}: model.name = {model!r} is not the name of a network.")
    if model not in MODELS:
        raise UsageError(f"{source('model.name')}: {unknown('model', model, MODELS)}")
    if "store" not in upper.get("data", {}):
        raise UsageError("no store given. Choose one made by `hpc-tumor prepare-data` with --data.")
    return build(Experiment, merge(preset(model), upper, {"task": MODELS[model].task}), where=source)


def holds(values: Mapping[str, Any], dotted: str) -> bool:
    """Return True if nested settings contain the dotted name."""
    inner: Any = values
    for key in dotted.split("."):
        if not isinstance(inner, Mapping) or key not in inner:
            return False
        inner = inner[key]
    return True


def settings_in(contents: dict[str, Any], where: str) -> dict[str, Any]:
    """Return the settings in a file's contents; `model = "unet"` is short for `model.name`."""
    values = {key: value for key, value in contents.items() if key not in ("description", "sweep", "random")}
    if isinstance(values.get("model"), str):
        values["model"] = {"name": values["model"]}
    for section in _SECTIONS:
        if not isinstance(values.get(section, {}), dict):
            raise UsageError(
                f"{where}: {section} = {values[section]!r} is not a section: write [{section}] with settings below it."
            )
    if "task" in values:
        raise UsageError(f"{where}: task cannot be set: the network determines it.")
    return values


def _variable(name: str) -> str:
    return f"{_PREFIX}{name.replace('.', '_').upper()}"


def _variables() -> dict[str, Any]:
    settings = {_variable(name): name for name in _NAMES}
    values: dict[str, Any] = {}
    for variable, text in os.environ.items():
        if variable in settings:
            put(values, settings[variable], parse_value(settings[variable], text))
        elif variable.startswith(_PREFIX) and variable not in _OTHER_VARIABLES:
            raise _unknown_variable(variable, [*settings, *_OTHER_VARIABLES])
    return values


def _unknown_variable(variable: str, known: Sequence[str]) -> UsageError:
    last = variable.removeprefix(_PREFIX)
    near = [name for name in known if name.endswith(f"_{last}")] or get_close_matches(variable, known, cutoff=0.8)
    hint = f"Did you mean {' or '.join(near[:3])}?" if near else f"An example is {_PREFIX}RECIPE_EPOCHS."
    return UsageError(f"unknown variable {variable}. {hint} Correct or unset it.")


def put(values: dict[str, Any], dotted: str, value: Any) -> None:
    """Set one nested setting by its dotted name."""
    *sections, last = dotted.split(".")
    for section in sections:
        values = values.setdefault(section, {})
    values[last] = value


def settings_by_name(experiment: Experiment) -> dict[str, Any]:
    """Return all settings as JSON values by dotted name."""
    values = experiment.model_dump(mode="json")
    return {name: _value_of(values, name) for name in fields_of(Experiment)}


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Return the differences as `name = value, but was value`: of settings that may change, and of all others.

    Both mappings are by dotted name. A setting missing from `before` was added later and had its default.
    """
    data = {name.removeprefix("data."): value for name, value in before.items() if name.startswith("data.")}
    before = {**before, **{f"data.{name}": value for name, value in earlier_defaults(now["task"], data).items()}}
    fields = fields_of(Experiment)
    fixed = {"recipe.epochs"} if now["recipe.schedule"] in ("cosine", "polynomial") else set()
    fixed |= {"hardware.compile"} if now["hardware.compile"] != "auto" else set()
    may: list[str] = []
    must_not: list[str] = []
    for name, value in now.items():
        was = before.get(name, fields[name].default)
        if was != value and (name in before or not fields[name].is_required()):
            difference = f"{name} = {json.dumps(value)}, but was {json.dumps(was)}"
            (may if name in MAY_CHANGE - fixed else must_not).append(difference)
    return may, must_not


def refuse_changes(changes: Sequence[str], what: str) -> None:
    """Raise DataError if there are forbidden changes to a resumed run; `what` is the subject of the message."""
    if changes:
        raise DataError(
            f"{what}: {'; '.join(changes)}. Resuming would mix two experiments: restore config.json, or submit a new"
            " run."
        )


def _value_of(values: Any, name: str) -> Any:
    for key in name.split("."):
        values = values[key]
    return values
