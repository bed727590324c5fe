"""Stage-in: copying a store to a node's local disk for training, once for all jobs of a user on the node.

    <disk>/hpc-tumor-<uid>-<host>/   owned by the user
      <fingerprint>.lock             locked by who copies or removes (exclusive), and by readers (shared)
      <fingerprint>/<name>           the copy
      <fingerprint>/whole.json       written last; the copy is invalid without it, or after a reboot
      <fingerprint>.part             an unfinished copy; the next job removes it if its job was killed

Locks (flock) are released by the kernel when their process ends.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hpc_tumor import console
from hpc_tumor.data.feed.node_disk import (
    NotStagedError,
    lock_path,
    make_room,
    partial_path,
    this_boot,
    try_lock,
    user_folder,
)
from hpc_tumor.data.store.store import Store, read_about
from hpc_tumor.errors import HpcTumorError
from hpc_tumor.run_dir import read_json
from hpc_tumor.system.atomic import is_disk_full

Files = dict[str, tuple[int, int]]  # below the store → size, time of the last change
Agree = Callable[[bool, bool], list[bool]]

_THREADS = 8  # hides the latency of a shared file system
_BLOCK = 4096  # bytes of a block of the file system
_PIECE = 4 * 2**20  # bytes copied at once
_TICK = 0.2  # seconds between polls
_MOST_TRIES = 50  # for an exclusive lock while a reader holds a shared one
_SAY_SECONDS, _SIGN_SECONDS = 15.0, 2.0  # between lines of progress, and between updates of the lock's time


class _GivenUpError(Exception):
    """The copy was given up."""


@dataclass
class Copy:
    """A complete copy, which is not removed while `lock` is held."""

    path: Path
    lock: int


def single_rank(*flags: bool) -> list[bool]:
    """Return the flags unchanged, as `agree` of a single rank."""
    return list(flags)


@contextmanager
def stage_store(
    store: Path,
    disk: str | None,
    say: Callable[[str], None],
    *,
    leads: bool = True,
    agree: Agree = single_rank,
    stop: Callable[[], str | None] = lambda: None,
    patience: float = 900.0,
) -> Iterator[Path | None]:
    """Yield the path of the copy of `store` on the node's local disk, or None to read the original.

    All ranks call this together, and return together. The first rank of each node copies the store if necessary; the
    others find the copy. A failure to copy is logged in one line and does not end the run.

    Args:
        disk: the folder from the profile (`$TMPDIR`); None: no copy.
        say: logs a line.
        leads: True on the first rank of the node.
        agree: combines two flags over all ranks with a logical or.
        stop: returns a reason to stop; all ranks then continue at once without a copy.
        patience: seconds without progress after which the copy is given up.
    """
    copy = None
    try:
        for copies in (True, False) if disk else ():
            work = _Staging(store, str(disk), say, copies) if copies == leads else None
            copy = _when_all_are_done(work, agree, stop, patience) or copy
        yield copy.path if copy else None
    finally:
        if copy:
            os.close(copy.lock)


def _when_all_are_done(
    work: _Staging | None, agree: Agree, stop: Callable[[], str | None], patience: float
) -> Copy | None:
    """Run `work`, and return its copy once it is finished on all ranks."""
    try:
        if work:
            work.start()
        while True:
            if work and time.monotonic() - work.moved > patience:
                work.give_up(f"no progress for {patience:.0f} s")
            at_work, stopping = agree(work is not None and work.is_alive() and not work.given_up, stop() is not None)
            if not at_work:
                return work.copy if work and not work.given_up else None
            if stopping and work:
                work.give_up("the run is stopping")
            if work:
                work.join(_TICK)
            else:
                time.sleep(_TICK)
    except BaseException:  # such as the loss of another rank: the thread must not delay the exit
        if work:
            work.given_up = True
        raise


class _Staging(threading.Thread):
    """Finds or makes the copy of a store on the node's disk, while the main thread communicates with other ranks."""

    def __init__(self, store: Path, disk: str, say: Callable[[str], None], copies: bool) -> None:
        super().__init__(name="staging", daemon=True)
        self.copy: Copy | None = None
        self.given_up = False
        self.moved = time.monotonic()  # time of the last progress, of this job or the one waited for
        self._store, self._disk, self._say, self._copies = store.absolute(), disk, say, copies
        self._counting = threading.Lock()
        self._copied, self._all, self._lock = 0, 0, -1
        self._began = self._said = self._signed = self.moved
        self._seen = 0.0  # time of the last progress of another job

    def give_up(self, why: str) -> None:
        """Stop copying, and log the reason."""
        if not self.given_up:
            self.given_up = True
            self._say(f"store: not copied to the node's disk: {why}")

    def run(self) -> None:
        try:
            self.copy = self._find_or_make()
        except _GivenUpError:
            pass
        except (NotStagedError, HpcTumorError, OSError) as error:
            if self._copies:
                self._say(f"store: not copied to the node's disk: {_describe(error, self._disk)}")

    def _find_or_make(self) -> Copy | None:
        about = read_about(self._store) or {}
        fingerprint = about.get("fingerprint")
        if about.get("complete") is not True or not isinstance(fingerprint, str):
            return None  # opening the store raises the error
        if not re.fullmatch(r"[0-9a-f]{8,128}", fingerprint):
            raise NotStagedError("invalid fingerprint")
        folder = user_folder(self._disk, self._store)
        copy = folder / fingerprint[:16]
        self._lock = os.open(lock_path(copy), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            if path := self._wait_for(copy, fingerprint):
                os.utime(self._lock)  # for the least recently used order of `make_room`
                return Copy(path, self._lock)
        except BaseException:
            os.close(self._lock)
            raise
        os.close(self._lock)
        return None

    def _wait_for(self, copy: Path, fingerprint: str) -> Path | None:
        """Return the copy with a shared lock; makes it, or waits for another job that does."""
        tries = 0
        while not self.given_up:
            if try_lock(self._lock, fcntl.LOCK_SH):
                if path := whole_copy(copy, fingerprint):
                    if not self._all:
                        self._say(f"store: read from the copy on the node's disk, {path}")
                    return path
                fcntl.flock(self._lock, fcntl.LOCK_UN)
                if not self._copies:
                    return None
                if try_lock(self._lock, fcntl.LOCK_EX):
                    if not whole_copy(copy, fingerprint):
                        self._make(copy, fingerprint)
                    fcntl.flock(self._lock, fcntl.LOCK_UN)
                    continue
                tries += 1
                if tries > _MOST_TRIES:
                    raise NotStagedError(f"{copy} is incomplete, but another job holds its lock")
            elif not self._copies:
                return None
            else:
                self._watch_another(copy)
            time.sleep(_TICK)
        raise _GivenUpError

    def _watch_another(self, copy: Path) -> None:
        if not self._seen:
            self._say(f"store: waiting for another job on this node that copies it to {copy}")
        if (seen := os.fstat(self._lock).st_mtime) != self._seen:
            self._seen, self.moved = seen, time.monotonic()

    def _make(self, copy: Path, fingerprint: str) -> None:
        files, part = list_files(self._store), partial_path(copy)
        target = part / self._store.name
        for old in (part, copy):  # of a killed job, or from before a reboot
            if old.exists():
                shutil.rmtree(old)
        sizes = [size for size, _ in files.values()]
        make_room(copy, sum(-(-size // _BLOCK) * _BLOCK for size in sizes), len(files) + len(_folders(files)))
        self._all, self._began = sum(sizes), time.monotonic()
        self._say(f"store: copying {console.size(self._all)} in {len(files):,} files to {copy}")
        try:
            self._copy_all(files, target)
            seconds = time.monotonic() - self._began
            if list_files(self._store) != files or Store.open(target, threads=1).fingerprint != fingerprint:
                raise NotStagedError("the store changed while it was copied")
            mark = {"fingerprint": fingerprint, "files": len(files), "bytes": self._all, "boot": this_boot()}
            (part / "whole.json").write_text(json.dumps({"name": target.name, **mark}), encoding="utf-8")
            if not whole_copy(part, fingerprint):
                raise NotStagedError(f"the copy in {part} differs from the store")
            part.rename(copy)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        speed = self._all / 1e6 / max(seconds, 1e-3)
        self._say(f"store: copied in {seconds:.1f} s, {speed:.0f} MB/s; read from the node's disk")

    def _copy_all(self, files: Files, target: Path) -> None:
        for folder in _folders(files):
            (target / folder).mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="staging") as pool:
            for _ in pool.map(lambda name: self._copy_file(name, target), files):
                pass

    def _copy_file(self, name: str, target: Path) -> None:
        """Copy one file, without following links."""
        source = os.open(self._store / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(source, "rb", buffering=0) as read, (target / name).open("xb", buffering=0) as write:
            while not self.given_up:
                piece = read.read(_PIECE)
                if not piece:
                    return
                remaining = memoryview(piece)
                while remaining:
                    remaining = remaining[write.write(remaining) :]
                self._count(len(piece))
        raise _GivenUpError

    def _count(self, copied: int) -> None:
        with self._counting:
            self._copied += copied
            now = self.moved = time.monotonic()
            if now - self._signed > _SIGN_SECONDS:
                self._signed = now
                os.utime(self._lock)  # shows progress to waiting jobs
            if now - self._said > _SAY_SECONDS:
                self._said = now
                speed = self._copied / max(now - self._began, 1e-3)
                left = (self._all - self._copied) / max(speed, 1)
                share = self._copied / max(self._all, 1)
                self._say(f"store: {share:.0%} copied, {speed / 1e6:.0f} MB/s, about {left:.0f} s left")


def _folders(files: Files) -> list[str]:
    return sorted({name.rpartition("/")[0] for name in files})


def list_files(store: Path) -> Files:
    """List all files of a store except the temporary ones of a conversion.

    Raises NotStagedError for a link or another entry that is neither a file nor a folder.
    """
    files: Files = {}
    below = [""]
    while below:
        folder = below.pop()
        with os.scandir(store / folder) as entries:
            for entry in entries:
                name = f"{folder}/{entry.name}" if folder else entry.name
                if not folder and entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    below.append(name)
                elif entry.is_file(follow_symlinks=False):
                    status = entry.stat(follow_symlinks=False)
                    files[name] = status.st_size, status.st_mtime_ns
                else:
                    raise NotStagedError(f"{store / name} is a link, not a file")
    return files


def whole_copy(copy: Path, fingerprint: str) -> Path | None:
    """Return the path of the store in `copy` if it is complete and was copied since the last boot, or None."""
    mark = read_json(copy / "whole.json") or {}
    if mark.get("fingerprint") != fingerprint or mark.get("boot") != this_boot():
        return None
    path = copy / str(mark.get("name"))
    try:
        sizes = [size for size, _ in list_files(path).values()]
    except (NotStagedError, OSError):
        return None
    return path if (len(sizes), sum(sizes)) == (mark.get("files"), mark.get("bytes")) else None


def _describe(error: Exception, disk: str) -> str:
    if not isinstance(error, OSError):
        return str(error).rstrip(".")
    if is_disk_full(error):
        return f"{disk} is full"
    file = f" ({error.filename})" if error.filename else ""
    return f"cannot write to {disk}: {error.strerror or error}{file}"
