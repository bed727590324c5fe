"""Keep the submitted code: jobs import the package from a zip file, so that later edits do not change queued runs.

One file per version, rather than a folder of small files, saves quota and is fast to read for hundreds of ranks.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import os
import re
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import hpc_tumor
from hpc_tumor.cluster.launch.private import code_folder, make_private, remove_empty
from hpc_tumor.errors import HpcTumorError
from hpc_tumor.system import atomic

_KINDS = ("*.py", "*.toml", "*.j2", "*.html", "*.css", "*.js", "*.npz", "*.md")
_KEPT_DAYS = 180  # since the last submission; resumed runs use the current code
_EPOCH = (1980, 1, 1, 0, 0, 0)  # fixed, so that the same files give the same archive
CODE_LOST = 79  # exit code of a start whose archive does not match its name
CODE_LOST_FAULT = "the submitted code is gone or damaged"
CODE_LOST_REMEDY = "continue with hpc-tumor resume or start anew with hpc-tumor rerun, both with the current code"
CODE_LOST_WORDS = f"{CODE_LOST_FAULT}: {CODE_LOST_REMEDY}"
CODE_LOST_LINE = "error: the code of this run"  # prefix of the log line that identifies this failure
# Check of the archive before each start, embedded in the job script. The package must not check itself: without a
# valid archive on its path, Python would import any other hpc_tumor.
CHECK = f"""\
import hashlib, os, sys
code = sys.argv[1]
try:
    with open(code, "rb") as file:
        name, owner = hashlib.sha256(file.read()).hexdigest()[:16] + ".zip", os.fstat(file.fileno()).st_uid
    fault = "" if name == os.path.basename(code) else "is damaged: its content is not what was submitted"
    fault = fault if owner == os.geteuid() else "is not yours: it is not run"
except FileNotFoundError:
    fault = "is gone"
except OSError as error:
    fault = "cannot be read: " + str(error.strerror)
if fault:
    print("{CODE_LOST_LINE}", fault + ":", code, file=sys.stderr)
    sys.exit({CODE_LOST})
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


def verified_python(code: Path) -> list[str]:
    """Return arguments of Python that check the archive `code` before running the arguments after them.

    If the archive is missing or damaged, Python prints why in one line and exits with CODE_LOST.
    """
    return ["-I", "-S", "-c", CHECK, str(code)]


def running_archive() -> Path | None:
    """Return the archive that this process imports hpc_tumor from, or None if it is a folder."""
    above = Path(hpc_tumor.__file__).parent.parent
    return None if above.is_dir() else above


def snapshot_path(runs: Path) -> Path:
    """Return the path of the archive of the current code for jobs of `runs`. Writes nothing."""
    return code_folder(runs) / f"{_hash()}.zip"


def take_snapshot(runs: Path) -> Path:
    """Write the archive of the current code for jobs of `runs`, and return its path; a damaged one is replaced.

    Raises:
        UsageError: its folder belongs to another user.
        HpcTumorError: this process itself runs from a damaged archive.
        OSError: it cannot be written.
    """
    folder = make_private(code_folder(runs))
    path = snapshot_path(runs)
    if path.exists() and path.read_bytes() == _archive():
        os.utime(path)
    else:
        if path.exists():
            from hpc_tumor.console import out  # not needed in jobs

            out.warning(f"the code snapshot {path} was damaged and has been rewritten; queued jobs are not affected")
        atomic.write_bytes(path, _archive())
    for other in folder.glob("*.zip"):
        if time.time() - other.stat().st_mtime > _KEPT_DAYS * 86_400:
            other.unlink(missing_ok=True)
    return path


@contextlib.contextmanager
def code_snapshot(runs: Path) -> Iterator[Path]:
    """Take a snapshot for the jobs started in the block; a new file is removed if the block fails."""
    new = not snapshot_path(runs).exists()
    code = take_snapshot(runs)
    try:
        yield code
    except BaseException:
        if new:
            code.unlink(missing_ok=True)
            remove_empty(code.parent)
        raise


@functools.cache
def _archive() -> bytes:
    if (archive := running_archive()) is not None:  # a job submits another
        contents = archive.read_bytes()
        if re.fullmatch(r"[0-9a-f]{16}", archive.stem) and archive.stem != _name_of(contents):
            raise HpcTumorError(f"the running code, {archive}, is damaged: submit from an installation of hpc-tumor.")
        return contents
    package = Path(hpc_tumor.__file__).resolve().parent
    files = sorted({file for kind in _KINDS for file in package.rglob(kind)})
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as packing:
        for file in files:
            name = f"hpc_tumor/{file.relative_to(package).as_posix()}"
            packing.writestr(zipfile.ZipInfo(name, _EPOCH), file.read_bytes(), zipfile.ZIP_DEFLATED)
    return packed.getvalue()


@functools.cache
def _hash() -> str:
    return _name_of(_archive())


def _name_of(contents: bytes) -> str:
    return hashlib.sha256(contents).hexdigest()[:16]
