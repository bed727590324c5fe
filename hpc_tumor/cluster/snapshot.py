"""The code that was submitted is the code that runs: one zip file of the package, which a job imports from.

A job may wait for days in the queue, and its checkout is edited meanwhile. One file for each version of the code: not a
folder of small ones, which count against a quota and are slow to read for hundreds of ranks of a shared file system.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
import time
import zipfile
from pathlib import Path

import hpc_tumor
from hpc_tumor import atomic
from hpc_tumor.cluster.private import code_folder, make_private

_KINDS = ("*.py", "*.toml", "*.j2", "*.html", "*.css", "*.js")
_KEPT_DAYS = 180  # since it was last submitted; a run that is resumed takes the code as it is then
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the same files give the same archive, whenever they were written


def snapshot_path(runs: Path) -> Path:
    """Where the code as it is now is kept for the jobs of `runs`. Writes nothing."""
    return code_folder(runs) / f"{_hash()}.zip"


def take_snapshot(runs: Path) -> Path:
    """Keep the code as it is now for the jobs of `runs`; runs of the same code share one file.

    Raises:
        UsageError: the folder for it belongs to somebody else.
        OSError: it cannot be written.
    """
    folder = make_private(code_folder(runs))
    path = snapshot_path(runs)
    if path.exists():
        os.utime(path)
    else:
        atomic.write_bytes(path, _archive())
    for other in folder.glob("*.zip"):
        if time.time() - other.stat().st_mtime > _KEPT_DAYS * 86_400:
            other.unlink(missing_ok=True)
    return path


@functools.cache
def _archive() -> bytes:
    package = Path(hpc_tumor.__file__).resolve().parent
    if package.parent.is_file():  # a job that submits another one runs from such an archive itself
        return package.parent.read_bytes()
    files = sorted({file for kind in _KINDS for file in package.rglob(kind)})
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            name = f"hpc_tumor/{file.relative_to(package).as_posix()}"
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), file.read_bytes(), zipfile.ZIP_DEFLATED)
    return packed.getvalue()


@functools.cache
def _hash() -> str:
    return hashlib.sha256(_archive()).hexdigest()[:16]
