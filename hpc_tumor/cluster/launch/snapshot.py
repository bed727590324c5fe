"""The code that was submitted is the code that runs: one zip file of the package, which a job imports from.

A job may wait for days in the queue, and its checkout is edited meanwhile. One file for each version of the code: not a
folder of small ones, which count against a quota and are slow to read for hundreds of ranks of a shared file system.
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

_KINDS = ("*.py", "*.toml", "*.j2", "*.html", "*.css", "*.js")
_KEPT_DAYS = 180  # since it was last submitted; a run that is resumed takes the code as it is then
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the same files give the same archive, whenever they were written
CODE_LOST = 79  # exit code of a start whose archive is not what its name says
CODE_LOST_FAULT = "the code that was submitted is gone or damaged"
CODE_LOST_REMEDY = "hpc-tumor resume goes on, hpc-tumor rerun begins anew, with the code as it is now"
CODE_LOST_WORDS = f"{CODE_LOST_FAULT}: {CODE_LOST_REMEDY}"
CODE_LOST_LINE = "error: the code of this run"  # begins the line in the log by which such an end is known
# The program that stands before each start from an archive, kept in the job's own script. With a broken or missing
# archive on its path, Python imports any other hpc_tumor that it finds: that one must not be asked whether it is right.
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


def verified(code: Path) -> list[str]:
    """Arguments of Python before those of a command that imports from `code`: it begins where that is whole.

    Else it ends with CODE_LOST, and says why in one line.
    """
    return ["-I", "-S", "-c", CHECK, str(code)]


def imported_from() -> Path | None:
    """The archive that this process imports hpc_tumor from; None where it is a folder."""
    above = Path(hpc_tumor.__file__).parent.parent
    return None if above.is_dir() else above


def snapshot_path(runs: Path) -> Path:
    """Return the file that keeps the code as it is now for the jobs of `runs`. Writes nothing."""
    return code_folder(runs) / f"{_hash()}.zip"


def take_snapshot(runs: Path) -> Path:
    """Keep the code as it is now for the jobs of `runs`; runs of the same code share one file.

    A file that is damaged is written anew, which is said.

    Raises:
        UsageError: the folder for it belongs to somebody else.
        HpcTumorError: this process runs from an archive that is damaged.
        OSError: it cannot be written.
    """
    folder = make_private(code_folder(runs))
    path = snapshot_path(runs)
    if path.exists() and path.read_bytes() == _archive():
        os.utime(path)
    else:
        if path.exists():
            from hpc_tumor.console import out  # here: jobs import this module, and print nothing in colours

            out.warning(f"the code in {path} was damaged: it is written anew; jobs that wait for it run the right one")
        atomic.write_bytes(path, _archive())
    for other in folder.glob("*.zip"):
        if time.time() - other.stat().st_mtime > _KEPT_DAYS * 86_400:
            other.unlink(missing_ok=True)
    return path


@contextlib.contextmanager
def kept_code(runs: Path) -> Iterator[Path]:
    """The code as `take_snapshot` keeps it; where no job comes of it, since the block fails, a new file goes again."""
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
    if (archive := imported_from()) is not None:  # a job that submits another one runs from such an archive itself
        contents = archive.read_bytes()
        if re.fullmatch(r"[0-9a-f]{16}", archive.stem) and archive.stem != _name_of(contents):
            raise HpcTumorError(f"{archive}, which this runs from, is damaged: submit from an installation.")
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
