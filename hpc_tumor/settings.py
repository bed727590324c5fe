"""Where settings come from: flag > HPC_TUMOR_* variable > job file > user's configuration > preset of the network."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import platformdirs

from hpc_tumor.config import Experiment, Settings, build, fields_of
from hpc_tumor.errors import UsageError, unknown

_PACKAGE = Path(__file__).parent


def shipped(folder: str) -> Path:
    """The folder of presets (`jobs`) or profiles (`slurm_templates`), in an installed package or in the checkout."""
    inside = _PACKAGE / folder
    return inside if inside.is_dir() else _PACKAGE.parent / folder


def user_directory() -> Path:
    """The user's configuration directory; the variable HPC_TUMOR_CONFIG_DIR names another."""
    return Path(os.environ.get("HPC_TUMOR_CONFIG_DIR") or platformdirs.user_config_dir("hpc-tumor"))


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
    path = user_directory() / "config.toml"
    return read_toml(path) if path.is_file() else {}


def user_default(key: str) -> str | None:
    """A default of the user's: the variable HPC_TUMOR_<KEY>, else `key` in their configuration."""
    value = os.environ.get(f"HPC_TUMOR_{key.upper()}") or user_configuration().get(key)
    return str(value) if value is not None else None


def parse_assignments(texts: Sequence[str]) -> dict[str, Any]:
    """`["recipe.epochs=2", "seed=1"]` as nested settings; the section may be left out where the name is unique.

    Values are read as JSON where they are that (numbers, true, null), else as text.
    """
    values: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--set {text!r} has no value: write it as KEY=VALUE, for example recipe.epochs=2.")
        _put(values, full_name(key.strip()), _parse(value.strip()))
    return values


def full_name(key: str) -> str:
    """`epochs` → `recipe.epochs`. UsageError for a name that is unknown or stands in two sections."""
    names = [name for name in fields_of(Experiment) if name != "task"]
    if key in names:
        return key
    fitting = [name for name in names if name.rpartition(".")[2] == key]
    if len(fitting) == 1:
        return fitting[0]
    raise unknown("setting", key, fitting or names)


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dictionaries laid over each other, the later over the earlier."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            old = merged.get(key)
            merged[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, Mapping) else value
    return merged


def preset(model: str) -> dict[str, Any]:
    """The published recipe of `model`: the settings in jobs/<model>.toml. UsageError for an unknown model."""
    from hpc_tumor.models import MODELS

    if model not in MODELS:
        raise unknown("model", model, MODELS)
    return _settings(read_toml(shipped("jobs") / f"{model}.toml"))


class JobFile(Settings):
    """A job file: settings for all of its runs, and the `sweep` of values that makes many runs of them."""

    path: Path
    settings: dict[str, Any]
    sweep: dict[str, list[Any]]

    def variants(self) -> Iterator[dict[str, Any]]:
        """The settings of each run: one per combination of the sweep's values."""
        keys = list(self.sweep)
        for combination in product(*self.sweep.values()):
            values = merge(self.settings)
            for key, value in zip(keys, combination, strict=True):
                _put(values, key, value)
            yield values


def read_job_file(path: Path) -> JobFile:
    """A job file, by its path or by the name of a preset. Its `[sweep]` maps settings to lists of values."""
    if (
        not path.exists()
        and (shipped("jobs") / f"{path.stem}.toml").is_file()
        and path.parent in (Path(), Path("jobs"))
    ):
        path = shipped("jobs") / f"{path.stem}.toml"
    contents = read_toml(path)
    sweep = contents.pop("sweep", {})
    lists: dict[str, list[Any]] = {}
    for key, values in sweep.items() if isinstance(sweep, dict) else ():
        name = "model.name" if key == "model" else full_name(key)
        if not isinstance(values, list) or not values:
            raise UsageError(f"{path}: sweep.{key} = {values!r} is not a list of values; write {key} = [..., ...].")
        lists[name] = values
    return JobFile(path=path, settings=_settings(contents), sweep=lists)


def resolve(overrides: Mapping[str, Any], job: Mapping[str, Any] | None = None, where: str = "settings") -> Experiment:
    """The experiment of one run: `overrides` (flags) over variables over `job` over the user's file over the preset."""
    from hpc_tumor.models import MODELS

    user = {key: value for key, value in user_configuration().items() if key not in ("cluster", "account", "runs")}
    upper = merge(_settings(user), job or {}, _variables(), overrides)
    name = upper.get("model", {}).get("name")
    if name is None:
        raise UsageError(f"which model? Name one with --model: {', '.join(MODELS)}.")
    if "store" not in upper.get("data", {}):
        raise UsageError("which data? Name a store made by `hpc-tumor prepare-data` with --data.")
    values = merge(preset(str(name)), upper, {"task": MODELS[str(name)].task})
    return build(Experiment, values, where=where)


def _settings(contents: dict[str, Any]) -> dict[str, Any]:
    values = {key: value for key, value in contents.items() if key not in ("description", "sweep")}
    if isinstance(values.get("model"), str):
        values["model"] = {"name": values["model"]}
    return values


def _variables() -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name in fields_of(Experiment):
        text = os.environ.get(f"HPC_TUMOR_{name.replace('.', '_').upper()}")
        if text is not None and name != "task":
            _put(values, name, _parse(text))
    return values


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _put(values: dict[str, Any], dotted: str, value: Any) -> None:
    *sections, last = dotted.split(".")
    for section in sections:
        values = values.setdefault(section, {})
    values[last] = value
