"""Validate settings at construction, with messages that name the setting, the value and the allowed values."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from hpc_tumor.errors import UsageError


class Settings(BaseModel):
    """Base of all settings: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


class SettingError(ValueError):
    """Error of a validator of several settings: the dotted name of the faulty `setting`, and the message after it."""

    def __init__(self, setting: str, message: str) -> None:
        super().__init__(f"{setting} {message}")
        self.setting = setting


S = TypeVar("S", bound=Settings)


def build(kind: type[S], values: dict[str, Any], where: str | Callable[[str], str]) -> S:
    """Validate `values` as `kind`. Raises UsageError with all faults.

    `where` is the source of the values, or a function from a setting's dotted name to its source.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        faults: dict[str, list[str]] = {}
        for item in error.errors():
            name, message = _explain(kind, item)
            faults.setdefault(where if isinstance(where, str) else where(name), []).append(message)
        raise UsageError("; ".join(f"{source}: {'; '.join(messages)}" for source, messages in faults.items())) from None


def plain_message(error: Any) -> str:
    """Return the message of a pydantic error without its prefix."""
    return str(error["msg"]).removeprefix("Value error, ")


def _explain(kind: type[BaseModel], error: Any) -> tuple[str, str]:
    """Return the dotted name of the invalid setting, and the message."""
    name = ".".join(map(str, error["loc"]))
    message = plain_message(error)
    if error["type"] == "extra_forbidden":
        return name, unknown_setting(name, [known for known in fields_of(kind) if known != "task"])
    if error["type"] == "missing":
        return name, f"{name} is missing"
    if not name:  # a validator of several settings
        fault = error.get("ctx", {}).get("error")
        return (fault.setting if isinstance(fault, SettingError) else ""), message
    if error["type"] == "model_type":
        return name, f"{name} = {error['input']!r} is not a section: write [{name}] with settings below it"
    if error["type"] in ("string_type", "path_type") and isinstance(error["input"], int | float):
        return name, f"{name} = {error['input']!r} is not a string: put it in quotes"
    return name, f"{name} = {error['input']!r}: {message[0].lower()}{message[1:]}"


def unknown_setting(name: str, known: Iterable[str]) -> str:
    """Return the message for a setting that is not in `known`: suggests the closest name, else lists the section."""
    known = list(known)
    section, _, last = name.rpartition(".")
    sections = sorted({full.rpartition(".")[0] for full in known} - {""})
    if section in sections:
        names = {full.rpartition(".")[2]: full for full in known if full.rpartition(".")[0] == section}
        others = f"{section} has: {_shorten(names)}."
    else:
        names = {**{full.rpartition(".")[2]: full for full in known}, **{item: item for item in sections}}
        others = f"Known: {_shorten([*sections, *(full for full in known if '.' not in full)])}."
    near = get_close_matches(last, names, n=1)
    return f"unknown setting {name!r}. " + (f"Did you mean {names[near[0]]!r}?" if near else others)


def _shorten(names: Iterable[str]) -> str:
    """Join as many names as fit a message of two lines."""
    text = ", ".join(names)
    return text if len(text) <= 90 else f"{text[: text.rindex(',', 0, 90)]} …"


def parse_text(field: FieldInfo, text: str) -> Any:
    """Parse a value from the command line or a variable by the type of its setting.

    Texts and paths stay as typed: a store called `1e5` is not a number. Numbers, booleans, lists, quoted texts and, for
    optional settings, `null` are parsed as JSON.
    """
    kinds = set(_kinds(field.annotation))
    try:
        value = json.loads(text)
    except ValueError:
        return text
    fits = isinstance(value, str) or type(value) in kinds
    if not fits and (kinds <= {str, Path, NoneType} or isinstance(value, bool)):
        return text
    return value


def _kinds(annotation: Any) -> Iterator[type]:
    """Yield the types that the annotation allows."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        yield from _kinds(inner[0])
    elif origin is Literal:
        yield from map(type, inner)
    elif origin in (Union, UnionType):
        for choice in inner:
            yield from _kinds(choice)
    else:
        yield origin or annotation


def fields_of(kind: type[BaseModel]) -> dict[str, FieldInfo]:
    """Return all settings of `kind` by dotted name: `recipe.epochs`, `data.store`, `seed`."""
    fields: dict[str, FieldInfo] = {}
    for name, field in kind.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            fields.update({f"{name}.{key}": value for key, value in fields_of(inner).items()})
        else:
            fields[name] = field
    return fields
