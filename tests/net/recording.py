"""Compare the masked output of the program with recorded text.

After an intended change, `HPC_TUMOR_RECORD=1 python -m pytest tests/net` writes the records again: review the
difference before you commit it.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

RECORDED = Path(__file__).parent / "recorded"
RECORD = bool(os.environ.get("HPC_TUMOR_RECORD"))  # read before tests clear the environment
COMMAND = "HPC_TUMOR_RECORD=1 python -m pytest tests/net"
Command = Callable[[list[str]], tuple[int, str, str]]
WIDTH = 116  # maximum characters of a recorded line; longer lines are wrapped
VERSION = metadata.version("hpc-tumor")
MOST_SHOWN = 150  # maximum lines of a difference
MOST_ENTRIES = 100  # maximum entries of a JSON object that is recorded as it is
LONGEST = 200  # maximum characters of a JSON text that is recorded as it is
# Libraries that write recorded text or bytes, by the file that records their versions.
VERSIONS = "versions.txt"
LIBRARIES = (
    "h5py", "isal", "matplotlib", "nibabel", "numcodecs", "numpy", "onnx", "pillow", "pydantic", "rich", "torch",
    "typer",
)  # fmt: skip

# Everything that differs between two runs of the same code, with its replacement.
NEW_RUN = re.compile(r"\b2(?!0260101-0000)\d{7}-\d{6}-([a-z0-9-]+)-[0-9a-f]{6}\b")  # test runs have fixed names
MASKS: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    (re.compile(r"\x1b\[[0-9;]*m"), ""),
    (re.compile(r"^.* of .*, about .* left\n", re.MULTILINE), ""),  # progress lines, which depend on the time
    (re.compile(r"^\w+: (\d+) of (?!\1 )\d+ \w+\n", re.MULTILINE), ""),  # likewise, its first line
    (NEW_RUN, r"<run of \1>"),
    (re.compile(r"\b20\d\d-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:\d\d)?"), "<time>"),
    (re.compile(r"^(time +)\d.*$", re.MULTILINE), r"\1<duration>"),
    (re.compile(r"\bin \d[\d.]* (s|min)\b"), "in <duration>"),
    (re.compile(r"\b\d[\d.,]*( cases| images| slices| samples)?/s\b"), "<speed>"),
    (re.compile(r"\.(code|queue|submissions|converting)-\d+\b"), r".\1-UID"),
    (re.compile(r'("(?:time|seconds|elapsed|gpu_hours|[a-z_]*_age|eta|modified)": )-?[\d.e+-]+'), r'\1"<time>"'),
    (re.compile(r'("(?:rate|samples_per_second|data_wait|peak_memory_gb)": )-?[\d.e+-]+'), r'\1"<speed>"'),
    (re.compile(r'("(?:bytes[a-z_]*)": )\d+'), r'\1"<bytes>"'),
    (re.compile(r"\b[0-9a-f]{16}\.zip\b"), "CODE.zip"),
    (re.compile(r'("script": )".*"'), r'\1"<script>"'),  # scripts are recorded separately
    # The last digits of computed numbers differ between kinds of CPU.
    (re.compile(r"-?\b\d+\.\d{5,}(e[+-]?\d+)?\b"), lambda found: f"{float(found[0]):.4g}"),
)


def mask(text: str, places: Mapping[str, str]) -> str:
    """Mask what differs between two runs; `places` maps folders to their replacements."""
    known = {**places, sys.executable: "PYTHON", f"hpc-tumor {VERSION}": "hpc-tumor <version>"}
    for found in sorted(known, key=len, reverse=True):
        text = text.replace(found, known[found])
    for pattern, shown in MASKS:
        text = pattern.sub(shown, text)
    return text


def wrap(text: str) -> str:
    """Wrap long lines at spaces; a continuation line begins with `\\`, so that nothing is lost."""
    lines = []
    for line in text.splitlines():
        while len(line) > WIDTH:
            cut = line.rfind(" ", 20, WIDTH)
            cut = line.rfind(",", 20, WIDTH) if cut < 0 else cut
            cut = WIDTH if cut < 0 else cut
            lines.append(line[:cut])
            line = "\\" + line[cut:]
        lines.append(line)
    return "\n".join(lines) + "\n"


def compare(name: str, text: str, *, wrapped: bool = True) -> None:
    """Fail with the difference if `text` is not the one recorded under this name."""
    record, text = RECORDED / name, wrap(text) if wrapped else text
    if RECORD:
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(text, encoding="utf-8")
        return
    recorded = record.read_text(encoding="utf-8") if record.is_file() else ""
    if text == recorded:
        return
    difference = list(difflib.unified_diff(recorded.splitlines(), text.splitlines(), "on record", "now", lineterm=""))
    left_out = len(difference) - MOST_SHOWN
    difference[MOST_SHOWN:] = [f"… {left_out} more lines"] if left_out > 0 else []
    pytest.fail(
        f"{record} differs:\n"
        + "\n".join(difference)
        + f"\nIf that is meant: {COMMAND}, then read `git diff`.{_other()}",
        pytrace=False,
    )


def versions() -> str:
    """Return the versions of the libraries whose output is recorded, one per line."""
    return "".join(f"{name} {metadata.version(name)}\n" for name in LIBRARIES)


def same_versions() -> bool:
    """Return True if those libraries have the versions of the record."""
    record = RECORDED / VERSIONS
    return record.is_file() and record.read_text() == versions()


def _other() -> str:
    if same_versions():
        return ""
    before = (RECORDED / VERSIONS).read_text().splitlines() if (RECORDED / VERSIONS).is_file() else []
    others = sorted(set(versions().splitlines()) - set(before))
    return f"\nIt may be for other versions than on record: {', '.join(others)}."


def replay(name: str, run: Callable[[list[str]], tuple[int, str, str]]) -> None:
    """Pass each recorded command to `run`, and compare exit code, stdout and stderr.

    A recorded line `$ COMMAND` is a command, `# …` a comment. To add a command, add its line; recording adds the rest.
    """
    record = (RECORDED / name).read_text(encoding="utf-8").replace("\n\\", "")
    kept: list[str] = []
    for line in record.splitlines():
        if line.startswith("#"):
            kept += ["", line]
        elif line.startswith("$ "):
            code, out, errors = run(shlex.split(line.removeprefix("$ ")))
            shown = [f"| {text}".rstrip() for text in out.splitlines()]
            shown += [f"! {text}".rstrip() for text in errors.splitlines()]
            kept += ["", line, *shown, f"= {code}"]
    compare(name, "\n".join(kept).lstrip("\n"))


def outline(value: Any, texts: bool = True) -> str:
    """Return the form of JSON: keys and types; integers, booleans and optionally texts as they are."""
    if isinstance(value, dict):
        forms = [(key, _indented(outline(item, texts))) for key, item in value.items()]
        groups = groupby(forms, key=lambda form: form[1] if form[1].startswith(" <") else form)
        alike = [list(group) for _, group in groups]
        return "".join(f"\n{', '.join(key for key, _ in group)}:{group[0][1]}" for group in alike) or " {}"
    if isinstance(value, list) and value and isinstance(value[0], dict):  # each form once
        return "".join(f"\n-{_indented(form)}" for form in dict.fromkeys(outline(item, texts) for item in value))
    if isinstance(value, list):
        forms = [outline(item, texts).strip() for item in value]
        return f" [{', '.join(forms if len(forms) < 9 else dict.fromkeys(forms))}]"
    if isinstance(value, float) or (isinstance(value, str) and not texts):
        return f" <{type(value).__name__}>"
    return f" {json.dumps(value, ensure_ascii=False)}"


def _indented(text: str) -> str:
    return text.replace("\n", "\n  ")


def plain(value: Any, indent: str = "") -> str:
    """Format JSON as readable lines: lists of values in one line, long texts as their digest."""
    inner = f"{indent}  "
    if isinstance(value, dict) and len(value) > MOST_ENTRIES:
        return f"<{len(value)} entries, sha256 {digest(json.dumps(value).encode())}>"
    if isinstance(value, dict) and value:
        items = [f"{inner}{json.dumps(key)}: {plain(item, inner)}" for key, item in value.items()]
        return "{\n" + ",\n".join(items) + f"\n{indent}}}"
    if isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        return "[\n" + ",\n".join(f"{inner}{plain(item, inner)}" for item in value) + f"\n{indent}]"
    if isinstance(value, str) and len(value) > LONGEST:
        return f"<text of {len(value)} characters, sha256 {digest(value.encode())}>"
    return json.dumps(value, ensure_ascii=False)


def digest(content: bytes) -> str:
    """Return the first half of the SHA-256."""
    return hashlib.sha256(content).hexdigest()[:32]
