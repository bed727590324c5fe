"""Settings that are refused at construction, with a message that names the setting, the value and what is allowed."""

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
    """Base of all settings: frozen, and an unknown key is an error rather than a silent default."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


class SettingError(ValueError):
    """Fault that a validator of several settings finds: the dotted name of the `setting` to blame, and the rest."""

    def __init__(self, setting: str, rest: str) -> None:
        super().__init__(f"{setting} {rest}")
        self.setting = setting


S = TypeVar("S", bound=Settings)


def build(kind: type[S], values: dict[str, Any], where: str | Callable[[str], str]) -> S:
    """`kind` made of `values`; else a UsageError that says what is wrong, where, and what is allowed.

    `where` is what the values were read from, or a function from the dotted name of a setting to that.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        faults: dict[str, list[str]] = {}
        for item in error.errors():
            name, message = _explain(kind, item)
            faults.setdefault(where if isinstance(where, str) else where(name), []).append(message)
        raise UsageError("; ".join(f"{source}: {'; '.join(messages)}" for source, messages in faults.items())) from None


def own_words(error: Any) -> str:
    """Return the message of one of pydantic's errors without what it puts before those of validators."""
    return str(error["msg"]).removeprefix("Value error, ")


def _explain(kind: type[BaseModel], error: Any) -> tuple[str, str]:
    """The dotted name of the setting that is wrong, and what is wrong with it."""
    name = ".".join(map(str, error["loc"]))
    message = own_words(error)
    if error["type"] == "extra_forbidden":
        return name, unknown_setting(
            name, [known for known in fields_of(kind) if known != "task"]
        )  # the network's, never set
    if error["type"] == "missing":
        return name, f"{name} is missing"
    if not name:  # of several settings
        fault = error.get("ctx", {}).get("error")
        return (fault.setting if isinstance(fault, SettingError) else ""), message
    if error["type"] == "model_type":
        return name, f"{name} = {error['input']!r} is not a section: write [{name}] with its settings below"
    if error["type"] in ("string_type", "path_type") and isinstance(error["input"], int | float):
        return name, f"{name} = {error['input']!r} is not text: write it in quotes"
    return name, f"{name} = {error['input']!r}: {message[0].lower()}{message[1:]}"


def unknown_setting(name: str, known: Iterable[str]) -> str:
    """Message on a setting that is none of those `known` by their dotted names: the nearest, else its section's."""
    known = list(known)
    section, _, last = name.rpartition(".")
    sections = sorted({full.rpartition(".")[0] for full in known} - {""})
    if section in sections:
        names = {full.rpartition(".")[2]: full for full in known if full.rpartition(".")[0] == section}
        others = f"{section} has: {_some(names)}."
    else:
        names = {**{full.rpartition(".")[2]: full for full in known}, **{item: item for item in sections}}
        others = f"There are {_some([*sections, *(full for full in known if '.' not in full)])}."
    near = get_close_matches(last, names, n=1)
    return f"unknown setting {name!r}. " + (f"Did you mean {names[near[0]]!r}?" if near else others)


def _some(names: Iterable[str]) -> str:
    """As many of the names as fit a message of two lines."""
    text = ", ".join(names)
    return text if len(text) <= 90 else f"{text[: text.rindex(',', 0, 90)]} …"


def parse_text(field: FieldInfo, text: str) -> Any:
    """Read a value that was typed. The type of the setting decides, not the look of the text.

    Texts and paths stay as they are typed: a store called `1e5` is no number. Numbers, true and false and lists are
    read as JSON where they are that, and so is `null` where a setting may be absent, and a text in quotes.
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
    """The types that a value of this annotation may have."""
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
    """Dotted names of all settings in `kind` with their fields: `recipe.epochs`, `data.store`, `seed`."""
    fields: dict[str, FieldInfo] = {}
    for name, field in kind.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            fields.update({f"{name}.{key}": value for key, value in fields_of(inner).items()})
        else:
            fields[name] = field
    return fields
