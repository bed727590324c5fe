"""Walls of the package: its imports, the size of its folders, modules and functions, and how docstrings open."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import hpc_tumor

PACKAGE = Path(hpc_tumor.__file__).parent
WORDS = re.compile(r"[a-z]{2,},? [a-z]{2,}", re.IGNORECASE)
MOST_FILES = 14  # of a folder, `__init__` not counted
MOST_LINES = 400  # of a module
LONGEST_FUNCTION = 60  # lines from `def` to the last one, decorators not counted
# From the lowest: a room imports only from those above it in this list, not even for types.
LAYERS = (
    ("errors", "vocabulary", "scores", "earlier"),
    ("validation",),
    ("system",),
    ("config", "models"),
    ("table",),
    ("run_dir",),
    ("settings", "records", "provenance", "console"),
    ("signals", "data"),
    ("training",),
    ("experiments", "prediction", "results"),
    ("cluster",),
    ("doctor",),
    ("cli",),
    ("__main__",),
)
EVERYWHERE = {"hpc_tumor", "hpc_tumor.system"}
QUESTION = re.compile(r"(What|Whether|How|Where|Who|Which|When|Why)(ever|se|m)?\b")
HEIGHT = {room: height for height, rooms in enumerate(LAYERS) for room in rooms}


def imports(path: Path) -> Iterator[str]:
    """Full names of what a module imports of this package, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hpc_tumor"):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("hpc_tumor"))


def imported_modules() -> dict[str, set[str]]:
    """The modules of this package that each of them imports: also for types alone, and inside functions."""
    paths = {module_name(path): path for path in PACKAGE.rglob("*.py")}
    return {
        module: {name if name in paths else name.rpartition(".")[0] for name in imports(path)} & paths.keys() - {module}
        for module, path in paths.items()
    }


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


def room(place: Path) -> str:
    return place.relative_to(PACKAGE).with_suffix("").parts[0]


def test_nothing_points_back_up() -> None:
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        if path.parent == PACKAGE and path.stem == "__init__":
            continue
        for name in imports(path):
            target = name.removeprefix("hpc_tumor.").split(".")[0]
            if target in HEIGHT and target != room(path) and HEIGHT[target] >= HEIGHT[room(path)]:
                wrong.append(f"{path.relative_to(PACKAGE)} imports {name}")
    assert not wrong


# Modules that read the sentences of other programs, which give no better sign.
READ_OTHERS = {
    "cluster/slurm.py": "SLURM",
    "doctor/probe.py": "Python",
    "training/watch/torch_errors.py": "torch",
    "validation.py": "pydantic",
}
# Modules that name kinds of GPUs as torch does, and why. All others ask system/devices.
NAME_DEVICES = {
    "system/devices.py": "answers for all others",
    "system/torch_builds.py": "reads them from torch's files, for commands that do not import torch",
    "training/checkpoints/files.py": "the key of the GPU's random state, in checkpoints of all versions",
}
DEVICE = re.compile(r"\b(cuda|xpu|hip)\b")
SEARCHES = {
    "startswith",
    "endswith",
    "find",
    "index",
    "count",
    "partition",
    "rpartition",
    "removeprefix",
    "removesuffix",
}


def is_sentence(node: ast.expr) -> bool:
    """Two words of text; not a value of a program or a line of a file, which have one."""
    return isinstance(node, ast.Constant) and isinstance(node.value, str) and bool(WORDS.search(node.value))


def looks_into_text(node: ast.AST) -> bool:
    """True for `"two words" in text`, `text.startswith("two words")` and their like."""
    if isinstance(node, ast.Compare) and is_sentence(node.left):
        collections = ast.Tuple | ast.List | ast.Set | ast.Dict
        return isinstance(node.ops[0], ast.In | ast.NotIn) and not isinstance(node.comparators[0], collections)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in SEARCHES:
        sought = [item for given in node.args for item in (given.elts if isinstance(given, ast.Tuple) else [given])]
        return any(map(is_sentence, sought))
    return False


def test_no_branch_looks_into_a_sentence() -> None:
    """Rewording a message must change no behaviour: decide by the type of an error, an enumeration, a key."""
    wrong = [
        f"{name}:{node.lineno}: {ast.unparse(node)}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if (name := path.relative_to(PACKAGE).as_posix()) not in READ_OTHERS
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.expr) and looks_into_text(node)
    ]
    assert not wrong


def names_a_device(node: ast.AST) -> bool:
    """True for `torch.cuda`, `torch.version`, `.is_cuda`, `"cuda:0"` and their like; not for sentences about CUDA."""
    if isinstance(node, ast.Attribute):
        of_torch = ast.unparse(node.value) in ("torch", "torch.backends") and node.attr in ("cuda", "xpu", "version")
        return of_torch or node.attr in ("is_cuda", "is_xpu")
    return (
        isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and not re.search(r"\s", node.value)
        and bool(DEVICE.search(node.value))
    )


def test_one_module_names_the_kinds_of_gpus() -> None:
    found = {
        name: [f"{name}:{node.lineno}: {ast.unparse(node)}" for node in ast.walk(tree) if names_a_device(node)]  # type: ignore[attr-defined]
        for path in sorted(PACKAGE.rglob("*.py"))
        for name in [path.relative_to(PACKAGE).as_posix()]
        for tree in [ast.parse(path.read_text(encoding="utf-8"))]
    }
    assert {name: places for name, places in found.items() if places and name not in NAME_DEVICES} == {}
    assert all(found[name] for name in NAME_DEVICES)  # no exception that is no longer one


def test_no_folder_is_too_full_to_be_read() -> None:
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    counts = {folder: len([path for path in folder.glob("*.py") if path.stem != "__init__"]) for folder in folders}
    assert {str(folder.relative_to(PACKAGE)): count for folder, count in counts.items() if count > MOST_FILES} == {}


def test_every_folder_says_what_it_is_for_and_who_imports_it() -> None:
    modules = {module_name(path): path for path in PACKAGE.rglob("*.py")}
    imports_of = imported_modules()
    importers = {
        folder: {
            name.split(".")[1]
            for name, imported in imports_of.items()
            if name != folder
            and not name.startswith(f"{folder}.")
            and any(f"{target}.".startswith(f"{folder}.") for target in imported)
        }
        for folder, path in modules.items()
        if path.stem == "__init__" and folder not in EVERYWHERE
    }
    assert {folder: named_importers(modules[folder]) for folder in importers} == importers


def named_importers(path: Path) -> set[str]:
    """Rooms that the docstring of a folder names after "Imported by"."""
    _, _, sentence = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("Imported by ")
    return set(re.findall(r"\w+", sentence.partition(".")[0])) & HEIGHT.keys()


def test_docstrings_open_with_a_verb_or_a_noun() -> None:
    paths = [*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "tools").rglob("*.py")]
    assert len(paths) > 200
    wrong = [
        f"{path.relative_to(PACKAGE.parent)}:{node.lineno}: {node.value.value.splitlines()[0]}"
        for path in paths
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        # Attributes are described by a text below them, as functions are by one that opens them.
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        if QUESTION.match(node.value.value)
    ]
    assert not wrong


def test_no_module_is_too_long_to_be_read() -> None:
    lines = {
        str(path.relative_to(PACKAGE)): path.read_text(encoding="utf-8").count("\n") for path in PACKAGE.rglob("*.py")
    }
    assert {name: count for name, count in lines.items() if count > MOST_LINES} == {}


def test_no_function_is_too_long_to_be_read() -> None:
    lengths = {
        f"{path.relative_to(PACKAGE)}:{node.lineno} {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST_FUNCTION} == {}


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Modules are taken away for as long as one imports none of those that are left: what then stays is in circles."""
    left = imported_modules()
    while leaves := [module for module, imported in left.items() if not imported & left.keys()]:
        for module in leaves:
            del left[module]
    assert {module: sorted(imported & left.keys()) for module, imported in left.items()} == {}
