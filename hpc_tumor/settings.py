"""Resolve settings: flag > HPC_TUMOR_* variable > job file > user's configuration > preset of the network.

And compare those of a run that goes on with those that it began with.
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
from hpc_tumor.errors import DataError, UsageError, unknown
from hpc_tumor.system.resources import NO_HOME
from hpc_tumor.validation import build, fields_of, parse_text, unknown_setting

_PACKAGE = Path(__file__).parent
_SECTIONS = ("model", "data", "recipe", "hardware", "scoring")
_USER_KEYS = ("cluster", "account", "runs")  # of config.toml, beside the sections
_FIELDS = {name: field for name, field in fields_of(Experiment).items() if name != "task"}  # the task is the network's
_NAMES = list(_FIELDS)
_PREFIX = "HPC_TUMOR_"
# Variables that are no settings: where things are, how this program speaks, what its tests need.
_OTHER_VARIABLES = {
    f"{_PREFIX}{name}"
    for name in (
        "CLUSTER", "ACCOUNT", "RUNS", "CONFIG_DIR", "HINTS", "REAL_DATA", "REQUIRE_SLURM", "REQUIRE_PROGRAMS",
        "PARENT", "STEP_DELAY",
    )
}  # fmt: skip
# Settings that may be changed in a run that goes on: it is the same experiment still, to the bit, or up to the order of
# additions on another number of ranks, threads or micro-batches. All others, of later versions too, must stay.
MAY_CHANGE = frozenset({
    "data.store", "data.split_file",  # what they hold is compared instead
    "data.keep", "data.keep_gb", "hardware.gpus", "hardware.threads", "hardware.timeout_minutes", "checkpoint_minutes",
    "keep_every", "profile", "tensorboard", "scoring.flips", "scoring.clean",
    "hardware.precision",  # the format in use is compared instead
    "hardware.accumulate",  # as the number of ranks: sums in another order, and batch norm over other samples
    "hardware.compile",  # to auto, which goes on as before
    "recipe.epochs",  # where the learning rate of an epoch does not depend on how many will follow
})  # fmt: skip


def shipped(folder: str) -> Path:
    """The folder of presets (`jobs`) or profiles (`slurm_templates`), in an installed package or in the checkout."""
    inside = _PACKAGE / folder
    return inside if inside.is_dir() else _PACKAGE.parent / folder


def user_directory() -> Path:
    """The user's configuration directory; the variable HPC_TUMOR_CONFIG_DIR names another.

    Raises UsageError where neither that nor the user's home is known.
    """
    if given := os.environ.get("HPC_TUMOR_CONFIG_DIR"):
        return Path(given)
    try:
        folder = Path(platformdirs.user_config_dir("hpc-tumor"))
    except RuntimeError:
        folder = Path()
    if not folder.is_absolute():  # earlier versions of platformdirs leave the ~ there
        raise UsageError(
            f"there is no folder for your configuration: {NO_HOME}. Set HOME, or HPC_TUMOR_CONFIG_DIR to a folder."
        )
    return folder


def read_toml(path: Path) -> dict[str, Any]:
    """Contents of a TOML file. UsageError where it is absent or not TOML, with the line."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"there is no file {path}.") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path} cannot be read as TOML: {error}") from None


def user_configuration() -> dict[str, Any]:
    """The user's `config.toml`: `cluster`, `account`, `runs` and any section of settings; empty where there is none."""
    path = _user_file()
    contents = read_toml(path) if path.is_file() else {}
    for key in _USER_KEYS:
        if key in contents and not isinstance(contents[key], str):
            raise UsageError(f"{path}: {key} = {contents[key]!r} is not text: write it in quotes.")
    return contents


def user_default(key: str) -> str | None:
    """A default of the user's: the variable HPC_TUMOR_<KEY>, else `key` in their configuration."""
    value = os.environ.get(f"HPC_TUMOR_{key.upper()}") or user_configuration().get(key)
    return str(value) if value is not None else None


def parse_assignments(texts: Sequence[str]) -> dict[str, Any]:
    """Parse what --set was given, `["recipe.epochs=2", "seed=1"]`, as nested settings.

    The section may be left out where the name is unique. The type of the setting decides how its value is read, see
    `parse_value`.
    """
    values: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--set {text!r} has no value: write it as KEY=VALUE, for example recipe.epochs=2.")
        name = full_name(key.strip(), "--set")
        put(values, name, parse_value(name, value.strip()))
    return values


def parse_value(name: str, text: str) -> Any:
    """Read the value of the setting `name` as it was typed: texts and paths stay texts, whatever they look like."""
    return parse_text(_FIELDS[name], text)


def full_name(key: str, where: str) -> str:
    """`epochs` → `recipe.epochs`. UsageError, naming `where`, for a name that is unknown or stands in two sections."""
    if key in _NAMES:
        return key
    fitting = [name for name in _NAMES if name.rpartition(".")[2] == key]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise UsageError(f"{where}: {key!r} may be {' or '.join(fitting)}: write the whole name.")
    raise UsageError(f"{where}: {unknown_setting(key, _NAMES)}")


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dictionaries laid over each other, the later over the earlier; shares none of them with the layers."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            old = merged.get(key)
            nested = isinstance(value, Mapping)
            merged[key] = merge(old if isinstance(old, dict) else {}, value) if nested else value
    return merged


def preset(model: str) -> dict[str, Any]:
    """The published recipe of `model`: the settings in jobs/<model>.toml. UsageError for an unknown model."""
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
    """The experiment of one run: `overrides` (flags) over variables over `job` over the user's file over the preset.

    `where` names the job file in errors; `flag` gives the option by which the user gave a setting.
    """
    from hpc_tumor.models import MODELS

    path = str(_user_file())
    user = {key: value for key, value in user_configuration().items() if key not in _USER_KEYS}
    layers: list[tuple[Mapping[str, Any], Callable[[str], str]]] = [
        (settings_in(user, path), lambda name: path),
        (job or {}, lambda name: where),
        (_variables(), _variable),
        (overrides, flag),
    ]
    upper = merge(*(values for values, _ in layers))

    def source(name: str) -> str:
        return next((say(name) for values, say in reversed(layers) if holds(values, name)), "settings")

    model = upper.get("model", {}).get("name")
    if model is None:
        raise UsageError(f"which model? Name one with --model: {', '.join(MODELS)}.")
    if not isinstance(model, str):
        raise UsageError(f"{source('model.name')}: model.name = {model!r} is not the name of a network.")
    if model not in MODELS:
        raise UsageError(f"{source('model.name')}: {unknown('model', model, MODELS)}")
    if "store" not in upper.get("data", {}):
        raise UsageError("which data? Name a store made by `hpc-tumor prepare-data` with --data.")
    return build(Experiment, merge(preset(model), upper, {"task": MODELS[model].task}), where=source)


def holds(values: Mapping[str, Any], dotted: str) -> bool:
    """Return True if nested settings have one of that dotted name."""
    inner: Any = values
    for key in dotted.split("."):
        if not isinstance(inner, Mapping) or key not in inner:
            return False
        inner = inner[key]
    return True


def _user_file() -> Path:
    return user_directory() / "config.toml"


def settings_in(contents: dict[str, Any], where: str) -> dict[str, Any]:
    """Settings as a file gives them; `model = "unet"` is short for the name of the network."""
    values = {key: value for key, value in contents.items() if key not in ("description", "sweep", "random")}
    if isinstance(values.get("model"), str):
        values["model"] = {"name": values["model"]}
    for section in _SECTIONS:
        if not isinstance(values.get(section, {}), dict):
            raise UsageError(
                f"{where}: {section} = {values[section]!r} is not a section: write [{section}] with its settings below."
            )
    if "task" in values:
        raise UsageError(f"{where}: task cannot be set: it is the network's.")
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
    nearest = f"Did you mean {' or '.join(near[:3])}?" if near else f"Settings are {_PREFIX}RECIPE_EPOCHS and the like."
    return UsageError(f"unknown variable {variable}. {nearest} Correct or unset it.")


def put(values: dict[str, Any], dotted: str, value: Any) -> None:
    """Set one nested setting by its dotted name."""
    *sections, last = dotted.split(".")
    for section in sections:
        values = values.setdefault(section, {})
    values[last] = value


def settings_by_name(experiment: Experiment) -> dict[str, Any]:
    """All settings as JSON values, by their dotted names."""
    values = experiment.model_dump(mode="json")
    return {name: _value_of(values, name) for name in fields_of(Experiment)}


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Differences as `name = value, but was value`: of the settings that may change, and of the others.

    Both are by dotted names. One that `before` lacks was added since: it was as its default is.
    """
    fields = fields_of(Experiment)
    fixed = {"recipe.epochs"} if now["recipe.schedule"] in ("cosine", "polynomial") else set()
    fixed |= {"hardware.compile"} if now["hardware.compile"] != "auto" else set()
    may: list[str] = []
    must_not: list[str] = []
    for name, value in now.items():
        was = before.get(name, fields[name].default)
        if was != value and (name in before or not fields[name].is_required()):
            words = f"{name} = {json.dumps(value)}, but was {json.dumps(was)}"
            (may if name in MAY_CHANGE - fixed else must_not).append(words)
    return may, must_not


def refuse_changes(changes: Sequence[str], what: str) -> None:
    """Raise DataError for settings of a run that may not be others when it goes on; `what` says where they were."""
    if changes:
        raise DataError(
            f"{what}: {'; '.join(changes)}. Going on would mix two experiments: set it back in config.json, or submit"
            " a new run."
        )


def _value_of(values: Any, name: str) -> Any:
    for key in name.split("."):
        values = values[key]
    return values
