"""The store being written by a conversion: its lock, its staging folder, and its completion."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import socket
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hpc_tumor.data.store.nodes import GROUP_FILE, group_json, write_file
from hpc_tumor.data.store.store import SCHEMAS, read_about
from hpc_tumor.errors import DataError
from hpc_tumor.system.atomic import has_no_locks, is_disk_full

LOCK = ".prepare.lock"
STAGING = ".staging-"
_STAGING_NAME = re.compile(r"\.staging-[0-9a-f]{8}")
_EXCHANGED = ("images", "labels", "index")  # folders of a store that `exchange` moves
_FINISHING = "finishing"


class ConversionError(DataError):
    """A conversion cannot continue, for a reason other than its source."""


class StorageError(ConversionError):
    """A converted case cannot be written."""


class Target:
    """An unfinished store, locked by this process.

    Attributes:
        staging: temporary folder on the same disk, removed at the end. Complete results are renamed out of it.
        existing: attributes of the store before this conversion, or None.
    """

    def __init__(self, path: Path, identity: dict[str, Any], *, overwrite: bool):
        self.path = path
        self.identity = identity
        existing = read_about(path) or {}
        # If clearing was interrupted, the rest of the old store must not mix with the new one.
        self.overwrite = overwrite or existing.get("clearing") is True
        self.existing = None if self.overwrite else existing or None
        self.staging = path / f"{STAGING}{uuid.uuid4().hex[:8]}"
        self.begun = False

    def begin(self) -> None:
        """Mark the store as unfinished. With `overwrite`, remove its old content."""
        if self.begun:
            return
        self.begun = True
        unfinished = {**self.identity, "complete": False}
        old = [entry for entry in self.path.iterdir() if entry.name not in (GROUP_FILE, LOCK) and entry != self.staging]
        if self.overwrite and old:
            self._write({**unfinished, "clearing": True})
            for entry in old:
                self.discard(entry)
        self._write(unfinished)

    def replace(self, staged: Path, path: Path) -> None:
        """Move `staged` to `path` in the store, in place of what was there."""
        self.begin()
        if path.exists():
            self.discard(path)
        path.parent.mkdir(exist_ok=True)
        staged.rename(path)

    def discard(self, path: Path) -> None:
        """Remove `path` from the store in one rename; its files are deleted with the staging folder."""
        path.rename(self.staging / f"old-{uuid.uuid4().hex[:8]}")

    def finish(self, about: dict[str, Any]) -> None:
        """Mark the store as complete."""
        self._write({**self.identity, "complete": True, **about})

    def exchange(
        self, names: Sequence[str], optional: Sequence[str], about: dict[str, Any], ome: dict[str, Any] | None
    ) -> None:
        """Move complete folders from the staging folder to the store, and mark it as complete.

        If this is interrupted, the next conversion finishes it first: the old content may have no source any more.

        Args:
            names: folders to move.
            optional: folders to remove from the store if they are not moved.
            ome: attribute of a store that is itself an OME-Zarr image.
        """
        if self.overwrite:
            self.begin()
        gone = [name for name in optional if name not in names]
        finishing = {"staging": self.staging.name, "names": list(names), "gone": gone, "about": about, "ome": ome}
        self._write({**self.identity, "complete": False, _FINISHING: finishing})
        _exchange(self.path, {**self.identity, _FINISHING: finishing})

    def remains(self) -> str:
        """Describe what a failed conversion leaves, and how to continue."""
        if read_about(self.path) is None:
            return "No store was created: run the same command again."
        return "Committed cases are kept: run the same command again to continue."

    def _write(self, about: dict[str, Any]) -> None:
        _write_about(self.path, self.staging, about)


def _write_about(path: Path, staging: Path, about: dict[str, Any], ome: dict[str, Any] | None = None) -> None:
    staged = staging / f"about-{uuid.uuid4().hex[:8]}"
    write_file(staged, group_json({"hpc_tumor": about} if ome is None else {"ome": ome, "hpc_tumor": about}))
    staged.replace(path / GROUP_FILE)


def _exchange(path: Path, about: dict[str, Any]) -> None:
    """Do what remains of an exchange that `about` describes."""
    about = dict(about)
    finishing = about.pop(_FINISHING)  # sound: see `_finishing`
    staging = path / finishing["staging"]
    for name in (*finishing["names"], *finishing["gone"]):
        is_new = (staging / name).exists()
        if (is_new or name in finishing["gone"]) and (path / name).exists():
            (path / name).rename(staging / f"old-{uuid.uuid4().hex[:8]}")
        if is_new:
            (staging / name).rename(path / name)
    _write_about(path, staging, {**about, "complete": True, **finishing["about"]}, finishing["ome"])


def finish_interrupted(path: Path) -> None:
    """Finish an interrupted exchange of a store, if there is one. Raises DataError if it cannot be written."""
    if _finishing(path):
        with locked(path):
            _finish_interrupted(path)


def _finish_interrupted(path: Path) -> None:
    if _finishing(path):
        try:
            _exchange(path, read_about(path) or {})
        except OSError as error:
            raise disk_error(error, "the converted cases", path) from error


@contextmanager
def open_target(
    path: Path, identity: dict[str, Any], *, overwrite: bool, grows: Sequence[str] = ()
) -> Iterator[Target]:
    """Lock the folder `path` to write a store with this `identity` (schema, dataset, task, options).

    A store of a dataset in `grows` is continued as well as one of this dataset.

    On exit, removes the staging folder, and the folders created by this call if no case was committed.

    Raises:
        DataError: `path` is not a store, has another identity (unless `overwrite`), or is locked by another conversion.
    """
    path = Path(path)
    _check(path, identity, overwrite, grows)
    made = _make(path)
    try:
        with locked(path):
            _check(path, identity, overwrite, grows)
            _finish_interrupted(path)
            _remove_staging(path)
            target = Target(path, identity, overwrite=overwrite)
            try:
                target.staging.mkdir()
            except OSError as error:
                raise DataError(f"{disk_error(error, 'the converted cases', path)} {target.remains()}") from error
            try:
                yield target
            finally:
                _remove_staging(path)
    finally:
        for folder in made:
            with suppress(OSError):  # not empty: it holds a store
                folder.rmdir()


@contextmanager
def make_staging(path: Path) -> Iterator[Path]:
    """Make a staging folder in a store that is locked, and remove it on exit. Raises OSError."""
    _remove_staging(path)
    staging = path / f"{STAGING}{uuid.uuid4().hex[:8]}"
    staging.mkdir()
    try:
        yield staging
    finally:
        _remove_staging(path)


def identity_of(dataset: str, task: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return the attributes that a store must share with a conversion that continues it."""
    return {"schema": SCHEMAS[task], "dataset": dataset, "task": task, "options": options}


def disk_error(error: OSError, what: str, store: Path) -> StorageError:
    """Return the error for a failed write of `what`."""
    why = "no space is left on its disk" if is_disk_full(error) else f"it cannot be written ({error.strerror or error})"
    return StorageError(f"{what} could not be stored in {store}: {why}.")


def remove(path: Path) -> None:
    """Remove a file or folder; the next conversion removes what remains, such as a folder still being written."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def list_staging(store: Path) -> list[Path]:
    """List staging folders of a store that no conversion holds."""
    try:
        folders = sorted(path for path in store.glob(f"{STAGING}*") if _is_staging(path))
        if not folders or store.is_symlink():
            return []
        _read_existing(store)
        finishing = _finishing(store)
        folders = [folder for folder in folders if folder.name != finishing]
        handle = os.open(store / LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:  # removed by its last holder
        return folders
    except (OSError, DataError):  # not a store
        return []
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return []
    finally:
        os.close(handle)
    return folders


def _is_staging(path: Path) -> bool:
    return _STAGING_NAME.fullmatch(path.name) is not None and path.is_dir() and not path.is_symlink()


def remove_staging(folder: Path) -> None:
    """Remove a folder from `list_staging`. Raises DataError if a conversion has started meanwhile, or OSError."""
    with locked(folder.parent):
        shutil.rmtree(folder)


def _remove_staging(path: Path) -> None:
    """Remove staging folders, except that of an interrupted exchange, which has the store's only content."""
    finishing = _finishing(path)
    with suppress(OSError):
        for stale in path.glob(f"{STAGING}*"):
            if stale.name != finishing:
                remove(stale)


def _finishing(path: Path) -> str | None:
    """Return the name of the staging folder of an interrupted exchange; None without one.

    The store may be a stranger's, so a record that names anything but folders of a store counts as none.
    """
    record = (read_about(path) or {}).get(_FINISHING)
    if not isinstance(record, dict):
        return None
    staging, moved = record.get("staging"), (record.get("names"), record.get("gone"))
    names = all(isinstance(names, list) and all(name in _EXCHANGED for name in names) for names in moved)
    facts = isinstance(record.get("about"), dict) and isinstance(record.get("ome"), dict | None)
    named = isinstance(staging, str) and _STAGING_NAME.fullmatch(staging) is not None
    return staging if named and names and facts and _is_staging(path / str(staging)) else None


def _check(path: Path, identity: dict[str, Any], overwrite: bool, grows: Sequence[str]) -> None:
    try:
        about = _read_existing(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}. It is unchanged.") from error
    if about is None or overwrite:
        return
    way = "Choose another name, or convert everything again with --overwrite."
    if about.get("dataset") not in (identity["dataset"], *grows):
        raise DataError(f"{path} is a store of {about.get('dataset')}, the source is {identity['dataset']}. {way}")
    if about["schema"] != identity["schema"]:
        age = "newer" if about["schema"] > identity["schema"] else "older"
        schema = f"the {age} schema {about['schema']}"
        raise DataError(f"{path} has {schema}; this version writes {identity['schema']}. {way}")
    before, now = about.get("options"), identity["options"]
    if before == now:
        return
    if isinstance(before, dict) and {**before, "labels": now.get("labels")} == now:
        was, is_ = (
            f"with --labels {options['labels']}" if options.get("labels") else "without --labels"
            for options in (before, now)
        )  # fmt: skip
        raise DataError(f"{path} was converted {was}, this time {is_}: use the same option. Or: {way.lower()}")
    raise DataError(f"{path} was converted with the options {before}; they are now {now}. {way}")


def _read_existing(path: Path) -> dict[str, Any] | None:
    """Return the attributes of the store at `path`, or None for an empty path. Raises DataError for anything else."""
    if not path.exists():
        return None
    if not path.is_dir():
        raise DataError(f"{path} is a file, not a store: choose another name. It is unchanged.")
    others = [entry for entry in path.iterdir() if entry.name != LOCK and not entry.name.startswith(STAGING)]
    if not others:
        return None
    if path / GROUP_FILE in others:
        (path / GROUP_FILE).read_bytes()  # raises OSError for a disk error, which `read_about` ignores
    about = read_about(path)
    if about is None:
        raise DataError(f"{path} is not empty and not a store of hpc-tumor: choose another name. It is unchanged.")
    return about


def _make(path: Path) -> list[Path]:
    """Create the folder; return the ones created, innermost first."""
    try:
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"the folder {path} cannot be created: {error.strerror}.") from error
    return missing


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file. The kernel releases the lock when its process ends, so it is never stale."""
    file = path / LOCK
    try:
        handle = _acquire(file)
    except BlockingIOError:
        holder = "another process"
        with suppress(OSError):
            holder = file.read_text(encoding="utf-8", errors="replace").strip() or holder
        raise DataError(f"{path} is being converted by {holder}: wait for it, or stop it.") from None
    except OSError as error:
        way = ""
        if has_no_locks(error):
            way = " Convert on another disk, then copy the store."
            with suppress(OSError):
                file.unlink(missing_ok=True)  # nobody can hold it
        raise DataError(f"{path} cannot be locked: {error.strerror}.{way}") from error
    try:
        yield
    finally:
        with suppress(OSError):
            file.unlink(missing_ok=True)
        os.close(handle)


def _acquire(file: Path) -> int:
    while True:
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if file.exists() and os.path.samestat(os.fstat(handle), file.stat()):
                with suppress(OSError):  # the holder's name is best effort; the disk may be full
                    os.ftruncate(handle, 0)
                    os.write(handle, f"process {os.getpid()} on {socket.gethostname()}".encode())
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # the last holder removed the file between open and lock: retry
