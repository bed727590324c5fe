"""The folder that a store is made in: who may write there, where unfinished work lies, and when it counts as whole."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hpc_tumor.data.store.nodes import GROUP_FILE, group_json, write_file
from hpc_tumor.data.store.store import SCHEMAS, read_about
from hpc_tumor.errors import DataError
from hpc_tumor.system.atomic import has_no_locks, is_disk_full

LOCK = ".prepare.lock"
STAGING = ".staging-"


class ConversionError(DataError):
    """A conversion cannot go on, through no fault of its source. Who holds the target adds what is left of it."""


class StorageError(ConversionError):
    """The disk of the store does not take what was converted."""


class Target:
    """A store in the making, held by this process alone.

    Attributes:
        staging: a folder of this run, on the same disk; gone when the run ends. What is complete is renamed out of it.
        existing: what a store that was there before says of itself.
    """

    def __init__(self, path: Path, identity: dict[str, Any], *, overwrite: bool):
        self.path = path
        self.identity = identity
        existing = read_about(path) or {}
        # Where clearing the store was cut short, what is left of the old one is not to be mixed with the new.
        self.overwrite = overwrite or existing.get("clearing") is True
        self.existing = None if self.overwrite else existing or None
        self.staging = path / f"{STAGING}{uuid.uuid4().hex[:8]}"
        self.begun = False

    def begin(self) -> None:
        """Say that the store is unfinished from here on. With `overwrite`, what was there goes."""
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

    def replace(self, staged: Path, place: Path) -> None:
        """Move `staged` to `place` in the store; what was there goes."""
        self.begin()
        if place.exists():
            self.discard(place)
        place.parent.mkdir(exist_ok=True)
        staged.rename(place)

    def discard(self, place: Path) -> None:
        """Take `place` out of the store at once, in one rename; its files go with the staging folder."""
        place.rename(self.staging / f"old-{uuid.uuid4().hex[:8]}")

    def finish(self, about: dict[str, Any]) -> None:
        """Say that the store is whole."""
        self._write({**self.identity, "complete": True, **about})

    def remains(self) -> str:
        """Sentence on what a conversion that cannot go on leaves."""
        if read_about(self.path) is None:
            return "Nothing was left behind: run the same command again."
        return "What was committed stays: run the same command again, and it goes on from there."

    def _write(self, about: dict[str, Any]) -> None:
        staged = self.staging / f"about-{uuid.uuid4().hex[:8]}"
        write_file(staged, group_json({"hpc_tumor": about}))
        staged.replace(self.path / GROUP_FILE)


@contextmanager
def open_target(path: Path, identity: dict[str, Any], *, overwrite: bool) -> Iterator[Target]:
    """Hold the folder `path` to make a store there with this `identity` (schema, dataset, task, options).

    On leaving, the staging folder goes; so does everything this call made, where no case was committed.

    Raises:
        DataError: something else is there, a store of other identity (unless `overwrite`), or another conversion runs.
    """
    path = Path(path)
    _check(path, identity, overwrite)
    made = _make(path)
    try:
        with _locked(path):
            _check(path, identity, overwrite)
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
            with suppress(OSError):  # not empty: a store was begun there
                folder.rmdir()


def identity_of(dataset: str, task: str, options: dict[str, Any]) -> dict[str, Any]:
    """Attributes that a store must share with a conversion that goes on with it."""
    return {"schema": SCHEMAS[task], "dataset": dataset, "task": task, "options": options}


def disk_error(error: OSError, what: str, store: Path) -> StorageError:
    """The error for a write that failed, naming what was being written."""
    why = "no space is left on its disk" if is_disk_full(error) else f"it cannot be written ({error.strerror or error})"
    return StorageError(f"{what} could not be stored in {store}: {why}.")


def remove(path: Path) -> None:
    """Remove a file or folder; what cannot be removed now, as where it is written to, goes with the next conversion."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def list_staging(store: Path) -> list[Path]:
    """Folders of unfinished work in a store that no conversion holds at this moment."""
    try:
        found = [path for path in store.glob(f"{STAGING}*") if _is_staging(path)]
        if not found or store.is_symlink():
            return []
        _look(store)
        handle = os.open(store / LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:  # removed by the last who held it
        return sorted(found)
    except (OSError, DataError):  # of no store
        return []
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return []
    finally:
        os.close(handle)
    return sorted(found)


def _is_staging(path: Path) -> bool:
    named = re.fullmatch(r"[0-9a-f]{8}", path.name.removeprefix(STAGING))
    return named is not None and path.is_dir() and not path.is_symlink()


def remove_staging(folder: Path) -> None:
    """Remove what `list_staging` gave. DataError where a conversion has begun meanwhile, OSError where it stays."""
    with _locked(folder.parent):
        shutil.rmtree(folder)


def _remove_staging(path: Path) -> None:
    with suppress(OSError):
        for stale in path.glob(f"{STAGING}*"):
            remove(stale)


def _check(path: Path, identity: dict[str, Any], overwrite: bool) -> None:
    try:
        about = _look(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}. It is untouched.") from error
    if about is None:
        return
    if overwrite:
        return
    way = "Choose another name, or convert all anew with --overwrite."
    if about.get("dataset") != identity["dataset"]:
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
            f"with --labels {one['labels']}" if one.get("labels") else "without --labels" for one in (before, now)
        )
        raise DataError(f"{path} was converted {was}, this time {is_}: repeat it as it was. Or: {way.lower()}")
    raise DataError(f"{path} was converted with the options {before}, now they are {now}. {way}")


def _look(path: Path) -> dict[str, Any] | None:
    """Attributes of the store at `path`; None where there is nothing yet. DataError for anything else."""
    if not path.exists():
        return None
    if not path.is_dir():
        raise DataError(f"{path} is a file, not a store: choose another name. It is untouched.")
    others = [entry for entry in path.iterdir() if entry.name != LOCK and not entry.name.startswith(STAGING)]
    if not others:
        return None
    if path / GROUP_FILE in others:
        (path / GROUP_FILE).read_bytes()  # a file that the disk does not give is not one that is no store
    about = read_about(path)
    if about is None:
        raise DataError(f"{path} is no store of hpc-tumor and not empty: choose another name. It is untouched.")
    return about


def _make(path: Path) -> list[Path]:
    """Make the folder; gives the ones that were not there, innermost first."""
    try:
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"the folder {path} cannot be made: {error.strerror}.") from error
    return missing


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock file. The system frees the lock however its holder ends, so none is ever stale."""
    file = path / LOCK
    try:
        handle = _acquire(file)
    except BlockingIOError:
        holder = "another process"
        with suppress(OSError):
            holder = file.read_text(encoding="utf-8", errors="replace").strip() or holder
        raise DataError(f"{path} is being converted by {holder}: wait for it, or stop it.") from None
    except OSError as error:
        way = " Convert on another disk, and copy the store." if has_no_locks(error) else ""
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
                with suppress(OSError):  # a full disk: the name is a courtesy, the lock holds without
                    os.ftruncate(handle, 0)
                    os.write(handle, f"process {os.getpid()} on {socket.gethostname()}".encode())
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # its holder removed the file between open and lock: try the new one
