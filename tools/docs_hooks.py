"""Generate parts of the documentation from the code when `mkdocs build` runs; they are never written to a file.

A line `<!-- made from the code: NAME -->` in a page is replaced by the result of the function of that name.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from html import escape
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

import hpc_tumor
from hpc_tumor import errors
from hpc_tumor.cli import app
from hpc_tumor.cli.views.runs import GROUPS
from hpc_tumor.cluster.observe.job_record import JobRecord
from hpc_tumor.cluster.observe.states import State
from hpc_tumor.config import ClusterProfile, Experiment
from hpc_tumor.data.editions import EDITIONS
from hpc_tumor.data.store.store import SCHEMAS, Store
from hpc_tumor.models import MODELS
from hpc_tumor.records import Event, Failure, Record, Status
from hpc_tumor.run_dir import RunDir
from hpc_tumor.settings import MAY_CHANGE, preset, read_toml, shipped
from hpc_tumor.validation import fields_of

PACKAGE = Path(hpc_tumor.__file__).parent
_PLACE = re.compile(r"^<!-- made from the code: ([a-z-]+) -->$", re.MULTILINE)


def on_config(config: Any) -> None:
    """Add the decision records to the navigation, in the order of their numbers."""
    records = sorted(Path(config.docs_dir, "decisions").glob("[0-9]*.md"))
    next(section for section in config.nav if "Decisions" in section)["Decisions"] += [
        f"decisions/{record.name}" for record in records
    ]


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill in the generated parts of a page; mkdocs calls this for each page. KeyError for a name not in `PARTS`."""
    return _PLACE.sub(lambda match: PARTS[match[1]](), markdown)


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Format a Markdown table; `|` in a cell is escaped, a line break becomes a space."""
    cells = [[re.sub(r"[ \n]+", " ", str(cell)).replace("|", r"\|") for cell in row] for row in (head, *rows)]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join([lines[0], f"|{' --- |' * len(head)}", *lines[1:]])


def code(value: object) -> str:
    return f"`{value}`"


# Commands


def commands() -> str:
    """Describe every command in the order of `--help`: text, examples, arguments and options."""
    root: Any = typer.main.get_command(app)
    parts = []
    for panel in dict.fromkeys(command.rich_help_panel for command in root.commands.values()):
        parts.append(f"## {panel}")
        for command in root.commands.values():
            if command.rich_help_panel == panel:
                parts += [_command(f"hpc-tumor {name}", each) for name, each in _with_inner(command)]
    return "\n\n".join(parts)


def _with_inner(command: Any) -> Iterator[tuple[str, Any]]:
    yield command.name, command
    for inner in getattr(command, "commands", {}).values():
        yield f"{command.name} {inner.name}", inner


def _command(name: str, command: Any) -> str:
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    options = [each for each in command.params if each.param_type_name == "option" and not each.hidden]
    usage = " ".join([name, *(["[OPTIONS]"] if options else []), *map(_usage, arguments)])
    parts = [f"### {name.removeprefix('hpc-tumor ')}", *_text(command.help or "", usage)]
    if arguments:
        parts.append(table(["argument", "meaning"], [(code(_usage(each)), each.help or "") for each in arguments]))
    if options:
        options.sort(key=lambda each: each.rich_help_panel is not None)
        parts.append(table(["option", "meaning"], map(_option, options)))
    return "\n\n".join(parts)


def _usage(argument: Any) -> str:
    name = (argument.metavar or argument.name).strip("{}").upper()
    if argument.required or name.startswith("["):
        return name
    return f"[{name}]" + ("..." if argument.nargs == -1 else "")


def _text(text: str, usage: str) -> Iterator[str]:
    """Format the docstring of a command as Markdown, after its usage, with its examples in one block."""
    examples = []
    yield f"```text\n{usage}\n```"
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        line = " ".join(paragraph.split())
        if line.startswith("hpc-tumor ") or line.startswith("Example: "):
            examples.append(line.removeprefix("Example: "))
        elif line != "Examples:":
            yield line
    if examples:
        yield "```bash\n" + "\n".join(examples) + "\n```"


def _option(option: Any) -> tuple[str, str]:
    value = (option.metavar or "").strip() if not option.is_flag else ""
    names = [*(name for name in option.opts if name.startswith("--")), *(n for n in option.opts if n[1] != "-")]
    written = ", ".join([*names, *option.secondary_opts])
    default = option.default if option.show_default and not (option.is_flag and option.default is False) else None
    shown = "" if default is None or callable(default) else f" Default: {code(default)}."
    return code(f"{written} {value}".strip()), f"{(option.help or '').strip()}{shown}"


# Settings


def settings() -> str:
    """List every setting of a run by section, with its allowed values."""
    parts = []
    names = [name for name in fields_of(Experiment) if name != "task"]
    for section in dict.fromkeys(["", *(name.rpartition(".")[0] for name in names)]):
        kind: Any = Experiment.model_fields[section].annotation if section else None
        parts.append(f"## {section}" if section else "## Of the run itself")
        if kind is not None:
            parts.append(inspect.cleandoc(kind.__doc__ or ""))
        rows = [
            (code(name), _values(field), _default(field), _description(field), "yes" if name in MAY_CHANGE else "")
            for name, field in fields_of(Experiment).items()
            if name in names and name.rpartition(".")[0] == section
        ]
        parts.append(table(["setting", "values", "default", "meaning", "may change"], rows))
    return "\n\n".join(parts)


def profile() -> str:
    """List every setting of a cluster profile."""
    rows = [(code(name), _values(field), _default(field), _description(field)) for name, field in _profile_fields()]
    return table(["setting", "values", "default", "meaning"], rows)


def _profile_fields() -> Iterator[tuple[str, FieldInfo]]:
    yield from ((name, field) for name, field in fields_of(ClusterProfile).items() if name != "name")


def profiles() -> str:
    """List the profiles that come with hpc-tumor."""
    folder = shipped("slurm_templates")
    rows = [(code(path.stem), read_toml(path)["description"]) for path in sorted(folder.glob("*.toml"))]
    return table(["profile", "cluster"], rows)


def recipes() -> str:
    """List the published recipe of each network from its preset, and the size of the network."""
    presets = {name: preset(name).get("recipe", {}) for name in MODELS}
    keys = list(dict.fromkeys(key for recipe in presets.values() for key in recipe))
    rows = [
        (code(name), spec.task, *(_shown(presets[name].get(key, _recipe_default(key))) for key in keys))
        for name, spec in MODELS.items()
    ]
    return table(["network", "task", *map(code, keys)], rows)


def _recipe_default(key: str) -> Any:
    return fields_of(Experiment)[f"recipe.{key}"].default


def _values(field: FieldInfo) -> str:
    limits = [
        f"{sign}\u00a0{_limit(getattr(item, name))}"
        for item in field.metadata
        for name, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))
        if getattr(item, name, None) is not None
    ]
    return ", ".join([_kind(field.annotation), *limits])


def _limit(value: float) -> str:
    return "2³¹" if value == 2**31 else f"{value:,}"


def _kind(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " · ".join(map(_shown, inner))
    if origin is Union or type(annotation).__name__ == "UnionType":
        return " or ".join(dict.fromkeys(_kind(each) for each in inner if each is not type(None)))
    if origin is tuple:
        return f"list of {_kind(inner[0])}s"
    if origin is dict:
        return "table"
    if hasattr(annotation, "__metadata__"):
        return _kind(annotation.__origin__)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "object"
    names = {"str": "text", "int": "whole number", "float": "number", "bool": "true or false", "Path": "path"}
    return names.get(getattr(annotation, "__name__", ""), "value")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    return "" if value in (None, (), {}, "") else _shown(value)


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return code(str(value).lower())
    if isinstance(value, float):
        return code(f"{value:g}")
    return "" if value is None else code(value)


def _description(field: FieldInfo) -> str:
    return field.description or ""


# Exit codes, stores and runs


def exit_codes() -> str:
    """List the exit codes with their errors."""
    texts: dict[int, list[str]] = {0: ["Done."]}
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    for kind in sorted(kinds, key=lambda kind: kind.__mro__[1] is not errors.HpcTumorError):
        exit_code, direct = getattr(kind, "exit_code", 1), kind.__mro__[1] is errors.HpcTumorError
        if kind is errors.HpcTumorError or not direct:
            continue
        texts.setdefault(exit_code, []).append(inspect.cleandoc(kind.__doc__ or ""))
    texts.setdefault(1, []).insert(0, "Failed.")
    texts[130] = ["Interrupted, as by Ctrl-C."]
    return table(["code", "meaning"], [(code(number), " ".join(text)) for number, text in sorted(texts.items())])


def run_files() -> str:
    """List the files of a run directory from the module that names them."""
    text = inspect.getdoc(inspect.getmodule(RunDir)) or ""
    rows: list[list[str]] = []
    for line in text.splitlines():
        if match := re.match(r"  ((?:\S+/\s+)*\S+)\s{2,}(\S.*)$", line):
            rows.append([match[1], match[2]])
        elif match := re.match(r"  (\S+/)(?:\s+\S+/)*$", line):
            rows.append([match[1], ""])
        elif rows and line.startswith("     "):
            rows[-1][1] += " " + line.strip()
    return table(["file", "content"], [(" ".join(map(code, name.split())), what) for name, what in rows])


def run_states() -> str:
    """List the states of runs, with the groups that `--state` takes."""
    rows = [(code(state.value), *("yes" if state in group else "" for group in GROUPS.values())) for state in State]
    return table(["state", *GROUPS], rows)


def run_records() -> str:
    """List the JSON files of a run that are read as typed records."""
    kinds: dict[str, type[Record]] = {
        "job.json": JobRecord,
        "status.json": Status,
        "events.jsonl": Event,
        "logs/failure.START.json": Failure,
    }
    parts = []
    for name, kind in kinds.items():
        fields = [(code(key), _kind(field.annotation)) for key, field in kind.model_fields.items() if key != "faults"]
        parts += [f"### {name}", inspect.cleandoc(kind.__doc__ or "").split("\n\n")[0], table(["key", "value"], fields)]
    return "\n\n".join(parts)


def store_contents() -> str:
    """List the contents of a store from the class that reads it."""
    rows = []
    for name, member in vars(Store).items():
        if name.startswith("_") or not (isinstance(member, property) or hasattr(member, "attrname")):
            continue
        rows.append((code(name), inspect.getdoc(member) or ""))
    return table(["attribute", "content"], rows)


def store_schemas() -> str:
    return table(["task", "schema"], SCHEMAS.items())


def editions() -> str:
    """List the meaning of the label numbers in each edition."""
    rows = [
        (code(edition.name), ", ".join(f"{number} {word}" for number, word in edition.words.items()))
        for edition in EDITIONS.values()
    ]
    return table([code("--labels"), "numbers in the files"], rows)


# Folders


@cache
def _imports() -> dict[str, set[str]]:
    """Return the folders and modules at the top of the package, each with its imports."""
    found: dict[str, set[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        room = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if room.startswith("__"):
            continue
        used = found.setdefault(room, set())
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hpc_tumor"):
                used |= {f"{node.module}.{alias.name}".split(".")[1] for alias in node.names}
    return {room: {name for name in used if name in found and name != room} for room, used in found.items()}


@cache
def _height(room: str) -> int:
    return 1 + max((_height(each) for each in _imports()[room]), default=-1)


def _is_folder(room: str) -> bool:
    return (PACKAGE / room).is_dir()


def _inner(room: str) -> list[str]:
    return sorted(path.parent.name for path in (PACKAGE / room).glob("*/__init__.py"))


def _rows() -> list[list[str]]:
    """Sort folders into rows, highest first: each imports only from rows below its own."""
    rows: dict[int, list[str]] = {}
    for room in filter(_is_folder, _imports()):
        below = max((_level(each) for each in _imports()[room] if _is_folder(each)), default=-1)
        rows.setdefault(below + 1, []).append(room)
    return [sorted(rows[level], key=lambda room: -len(_inner(room))) for level in sorted(rows, reverse=True)]


def _level(room: str) -> int:
    """Return the length of the longest chain of imports from a folder, through folders only."""
    return 1 + max((_level(each) for each in _imports()[room] if _is_folder(each)), default=-1)


def folders() -> str:
    """List the folders of the package with the first sentence of their docstrings."""
    rows = []
    for row in _rows():
        for room in row:
            text = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text(encoding="utf-8"))) or ""
            purpose, *_ = re.split(r"(?<=\.)\s", text, maxsplit=1)
            rows.append((code(f"{room}/"), purpose, " ".join(code(f"{name}/") for name in _inner(room))))
    return table(["folder", "purpose", "inside"], rows)


WIDTH, PAD, LINE, LETTER = 720, 12, 19, 7.3


def rooms() -> str:
    """Draw the folders as SVG in the colours of the page, from the imports of the package."""
    drawn: list[str] = []
    top = 4.0
    for row in _rows():
        width = (WIDTH - PAD * (len(row) - 1)) / len(row)
        inner = [_wrapped(_inner(room), width - 2 * PAD) for room in row]
        height = 2 * PAD + LINE * (1 + max(len(lines) for lines in inner))
        for number, (room, lines) in enumerate(zip(row, inner, strict=True)):
            drawn.append(_box(room, lines, number * (width + PAD), top, width, height))
        top += height + PAD
    modules = [room for room in sorted(_imports(), key=_height) if not _is_folder(room)]
    lines = _wrapped(modules, WIDTH - 2 * PAD, "")
    height = 2 * PAD + LINE * (1 + len(lines))
    drawn.append(_box("modules beside the folders", lines, 0, top, WIDTH, height, dashed=True))
    return (
        f'<figure class="rooms"><svg viewBox="-1 0 {WIDTH + 2} {top + height + 4:g}" role="img"'
        f' aria-label="The folders of the package, each above those it imports from">{"".join(drawn)}</svg>'
        "<figcaption>Each folder imports only from rows below its own.</figcaption></figure>"
    )


def _wrapped(names: Sequence[str], width: float, ending: str = "/") -> list[str]:
    lines = [""]
    for name in names:
        longer = f"{lines[-1]}  {name}{ending}".strip()
        if len(longer) * LETTER > width and lines[-1]:
            lines.append(f"{name}{ending}")
        else:
            lines[-1] = longer
    return [line for line in lines if line]


def _box(
    name: str, lines: Sequence[str], left: float, top: float, width: float, height: float, dashed: bool = False
) -> str:
    kind = "room loose" if dashed else "room"
    text = [
        f'<text class="name" x="{left + PAD:g}" y="{top + PAD + 12:g}">{escape(name)}{"" if dashed else "/"}</text>'
    ]
    text += [
        f'<text x="{left + PAD:g}" y="{top + PAD + 12 + LINE * (index + 1):g}">{escape(line)}</text>'
        for index, line in enumerate(lines)
    ]
    rect = f'<rect class="{kind}" x="{left:g}" y="{top:g}" width="{width:g}" height="{height:g}" rx="6"/>'
    return rect + "".join(text)


PARTS: dict[str, Callable[[], str]] = {
    "commands": commands,
    "settings": settings,
    "recipes": recipes,
    "profile": profile,
    "profiles": profiles,
    "exit-codes": exit_codes,
    "run-files": run_files,
    "run-states": run_states,
    "run-records": run_records,
    "store-contents": store_contents,
    "store-schemas": store_schemas,
    "editions": editions,
    "folders": folders,
    "rooms": rooms,
}
