"""What the program shows and writes, compared with the text on record, and what is masked before it is.

After a change that is meant, `HPC_TUMOR_RECORD=1 python -m pytest tests/net` writes the records anew: read the
difference before it is committed.
"""

from __future__ import annotations

import difflib
import os
import re
import shlex
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path

import pytest

RECORDED = Path(__file__).parent / "recorded"
RECORD = bool(os.environ.get("HPC_TUMOR_RECORD"))  # read before tests clear the environment
COMMAND = "HPC_TUMOR_RECORD=1 python -m pytest tests/net"
Command = Callable[[list[str]], tuple[int, str, str]]
WIDTH = 116  # characters of a line on record; longer ones go on in the next
VERSION = metadata.version("hpc-tumor")
MOST_SHOWN = 150  # lines of a difference
# Libraries that write text or bytes that are on record, by the file that says which versions they had.
VERSIONS = "versions.txt"
LIBRARIES = (
    "h5py", "isal", "matplotlib", "nibabel", "numcodecs", "numpy", "onnx", "pillow", "pydantic", "rich", "torch",
    "typer",
)  # fmt: skip

# The one place that says what differs between two runs of the same code, and what stands for it.
NEW_RUN = re.compile(r"\b2(?!0260101-0000)\d{7}-\d{6}-([a-z0-9-]+)-[0-9a-f]{6}\b")  # made-up runs have fixed names
MASKS: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    (re.compile(r"\x1b\[[0-9;]*m"), ""),
    (NEW_RUN, r"<run of \1>"),
    (re.compile(r"\b20\d\d-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:\d\d)?"), "<time>"),
    (re.compile(r"^(time +)\d.*$", re.MULTILINE), r"\1<duration>"),
    (re.compile(r"\b\d[\d.,]*( cases| images| slices| samples)?/s\b"), "<speed>"),
    (re.compile(r"\.(code|queue|submissions|converting)-\d+\b"), r".\1-<user>"),
    (re.compile(r'("(?:time|seconds|elapsed|gpu_hours|[a-z_]*_age|eta|modified)": )-?[\d.e+-]+'), r"\1<time>"),
    (re.compile(r'("(?:rate|samples_per_second|data_wait|[a-z_]*memory_gb)": )-?[\d.e+-]+'), r"\1<speed>"),
    (re.compile(r'("(?:pid|job_id)": )"?\d{2,}"?'), r"\1<pid>"),
    (re.compile(r'("host": )"[^"]*"'), r"\1<host>"),
    # The last digits of a number that was computed differ between kinds of CPU.
    (re.compile(r"-?\b\d+\.\d{5,}(e[+-]?\d+)?\b"), lambda found: f"{float(found[0]):.4g}"),
)


def mask(text: str, places: Mapping[str, str]) -> str:
    """`text` without what differs between two runs; `places` are folders and what stands for them."""
    known = {
        **places, sys.executable: "<python>", sys.prefix: "<prefix>", f"hpc-tumor {VERSION}": "hpc-tumor <version>",
    }  # fmt: skip
    for found in sorted(known, key=len, reverse=True):
        text = text.replace(found, known[found])
    for pattern, shown in MASKS:
        text = pattern.sub(shown, text)
    return text


def wrap(text: str) -> str:
    """`text` with long lines broken at spaces; a line that goes on begins with `\\`, so that nothing is lost."""
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


def compare(name: str, text: str) -> None:
    """Fail with the difference where `text` is not the one on record under this name."""
    record, text = RECORDED / name, wrap(text)
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
    """The versions of the libraries that write what is on record, one a line."""
    return "".join(f"{name} {metadata.version(name)}\n" for name in LIBRARIES)


def same_versions() -> bool:
    """Return True where those libraries are of the versions that they had when it was recorded."""
    record = RECORDED / VERSIONS
    return record.is_file() and record.read_text() == versions()


def _other() -> str:
    if same_versions():
        return ""
    before = (RECORDED / VERSIONS).read_text().splitlines() if (RECORDED / VERSIONS).is_file() else []
    others = sorted(set(versions().splitlines()) - set(before))
    return f"\nIt may be for other versions than on record: {', '.join(others)}."


def replay(name: str, run: Callable[[list[str]], tuple[int, str, str]]) -> None:
    """Give each command on record to `run`, and compare what it gives: exit code, stdout and stderr.

    A line `$ COMMAND` on record is a command, one `# …` a remark. A new command is a new line; recording adds the rest.
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
