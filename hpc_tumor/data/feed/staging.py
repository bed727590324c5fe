"""Stage-in: a store copied to a node's own disk, once for all jobs of a user there, for training to read.

    <disk>/hpc-tumor-<uid>-<host>/   this user's alone
      <fingerprint>.lock             held by whoever copies or removes (alone), and by all who read (together)
      <fingerprint>/<name>           the copy
      <fingerprint>/whole.json       written last: without it, or since another boot of the node, it is no copy
      <fingerprint>.part             a copy in the making, or one whose maker was killed: the next one clears it away

A lock is the kernel's (flock), so it ends with its process, however that ends.
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

from hpc_tumor.data.feed.node_disk import (
    NotStagedError,
    as_size,
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

_THREADS = 8  # a shared file system answers many questions at once, and each slowly
_BLOCK = 4096  # bytes that a file takes at least, and in multiples of which it grows
_PIECE = 4 * 2**20  # bytes copied at once
_TICK = 0.2  # seconds between two looks
_MOST_TRIES = 50  # for a lock that somebody who reads keeps
_SAY_SECONDS, _SIGN_SECONDS = 15.0, 2.0  # between two lines of progress, and two signs of life


class _GivenUpError(Exception):
    """Nobody waits for the copy any more."""


@dataclass
class Copy:
    """A whole copy, which nobody removes as long as `lock` is held."""

    path: Path
    lock: int


def single_rank(*flags: bool) -> list[bool]:
    """What the ranks agree on where there is one."""
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
    """Gives where the ranks of this node read `store`: its copy on the node's own disk, or None: where it is.

    All ranks call this together, and go on together. The first of each node makes the copy where there is none yet; the
    others find it. Whatever keeps the store from being copied is said in one line, and never ends a run.

    Args:
        disk: the folder, as the profile names it (`$TMPDIR`); None: nothing is copied.
        say: takes a line for the log.
        leads: whether this rank is the first of its node.
        agree: for two flags, whether any rank raised them.
        stop: a reason to stop; all ranks go on at once then, without a copy.
        patience: seconds in which nothing moves, after which a copy is given up.
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
    """What `work` gives, once it is done on all ranks."""
    try:
        if work:
            work.start()
        while True:
            if work and time.monotonic() - work.moved > patience:
                work.give_up(f"nothing moved for {patience:.0f} s")
            at_work, stopping = agree(work is not None and work.is_alive() and not work.given_up, stop() is not None)
            if not at_work:
                return work.copy if work and not work.given_up else None
            if stopping and work:
                work.give_up("the run is to stop")
            if work:
                work.join(_TICK)
            else:
                time.sleep(_TICK)
    except BaseException:  # another rank was lost: threads must not keep this one from ending
        if work:
            work.given_up = True
        raise


class _Staging(threading.Thread):
    """Finds the copy of a store on this node's disk, or makes it, beside the thread that talks with other ranks."""

    def __init__(self, store: Path, disk: str, say: Callable[[str], None], copies: bool) -> None:
        super().__init__(name="staging", daemon=True)
        self.copy: Copy | None = None
        self.given_up = False
        self.moved = time.monotonic()  # when there was a last sign of life, of this copying or another one
        self._store, self._disk, self._say, self._copies = store.absolute(), disk, say, copies
        self._counting = threading.Lock()
        self._copied, self._all, self._lock = 0, 0, -1
        self._began = self._said = self._signed = self.moved
        self._seen = 0.0  # the last sign of life of another copying

    def give_up(self, why: str) -> None:
        """Nobody waits any more."""
        if not self.given_up:
            self.given_up = True
            self._say(f"store: read where it is, for {why}")

    def run(self) -> None:
        try:
            self.copy = self._find_or_make()
        except _GivenUpError:
            pass
        except (NotStagedError, HpcTumorError, OSError) as error:
            if self._copies:
                self._say(f"store: read where it is, for {_in_words(error, self._disk)}")

    def _find_or_make(self) -> Copy | None:
        about = read_about(self._store) or {}
        fingerprint = about.get("fingerprint")
        if about.get("complete") is not True or not isinstance(fingerprint, str):
            return None  # whoever opens it says what is wrong
        if not re.fullmatch(r"[0-9a-f]{8,128}", fingerprint):
            raise NotStagedError("its fingerprint is none")
        folder = user_folder(self._disk, self._store)
        place = folder / fingerprint[:16]
        self._lock = os.open(lock_path(place), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            if path := self._wait_for(place, fingerprint):
                os.utime(self._lock)  # the copies that were used last go last
                return Copy(path, self._lock)
        except BaseException:
            os.close(self._lock)
            raise
        os.close(self._lock)
        return None

    def _wait_for(self, place: Path, fingerprint: str) -> Path | None:
        """The copy, held from now on: made here where nobody else makes it."""
        tries = 0
        while not self.given_up:
            if try_lock(self._lock, fcntl.LOCK_SH):
                if path := whole_copy(place, fingerprint):
                    if not self._all:
                        self._say(f"store: read from the copy on this node's disk, {path}")
                    return path
                fcntl.flock(self._lock, fcntl.LOCK_UN)
                if not self._copies:
                    return None
                if try_lock(self._lock, fcntl.LOCK_EX):
                    if not whole_copy(place, fingerprint):
                        self._make(place, fingerprint)
                    fcntl.flock(self._lock, fcntl.LOCK_UN)
                    continue
                tries += 1
                if tries > _MOST_TRIES:
                    raise NotStagedError(f"somebody reads {place}, which is not whole")
            elif not self._copies:
                return None
            else:
                self._watch_another(place)
            time.sleep(_TICK)
        raise _GivenUpError

    def _watch_another(self, place: Path) -> None:
        """Another job on this node makes the copy."""
        if not self._seen:
            self._say(f"store: another job on this node copies it to {place}: waiting for that")
        if (seen := os.fstat(self._lock).st_mtime) != self._seen:
            self._seen, self.moved = seen, time.monotonic()

    def _make(self, place: Path, fingerprint: str) -> None:
        """Copy the store to `place`, and look whether all of it has arrived."""
        files, part = list_files(self._store), partial_path(place)
        target = part / self._store.name
        for old in (part, place):  # of a maker that was killed, or of another boot
            if old.exists():
                shutil.rmtree(old)
        sizes = [size for size, _ in files.values()]
        make_room(place, sum(-(-size // _BLOCK) * _BLOCK for size in sizes), len(files) + len(_folders(files)))
        self._all, self._began = sum(sizes), time.monotonic()
        self._say(f"store: copying {as_size(self._all)} in {len(files):,} files to {place}")
        try:
            self._copy_all(files, target)
            seconds = time.monotonic() - self._began
            if list_files(self._store) != files or Store.open(target, threads=1).fingerprint != fingerprint:
                raise NotStagedError("it changed while it was copied")
            mark = {"fingerprint": fingerprint, "files": len(files), "bytes": self._all, "boot": this_boot()}
            (part / "whole.json").write_text(json.dumps({"name": target.name, **mark}), encoding="utf-8")
            if not whole_copy(part, fingerprint):
                raise NotStagedError(f"the copy in {part} is not what was copied")
            part.rename(place)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        speed = self._all / 1e6 / max(seconds, 1e-3)
        self._say(f"store: copied in {seconds:.1f} s, {speed:.0f} MB/s; read from this node's disk")

    def _copy_all(self, files: Files, target: Path) -> None:
        for folder in _folders(files):
            (target / folder).mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="staging") as pool:
            for _ in pool.map(lambda name: self._copy_file(name, target), files):
                pass

    def _copy_file(self, name: str, target: Path) -> None:
        """Copy one file; no link is followed."""
        source = os.open(self._store / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(source, "rb", buffering=0) as read, (target / name).open("xb", buffering=0) as write:
            while not self.given_up:
                piece = read.read(_PIECE)
                if not piece:
                    return
                left = memoryview(piece)
                while left:
                    left = left[write.write(left) :]
                self._count(len(piece))
        raise _GivenUpError

    def _count(self, copied: int) -> None:
        with self._counting:
            self._copied += copied
            now = self.moved = time.monotonic()
            if now - self._signed > _SIGN_SECONDS:
                self._signed = now
                os.utime(self._lock)  # for those who wait
            if now - self._said > _SAY_SECONDS:
                self._said = now
                speed = self._copied / max(now - self._began, 1e-3)
                left = (self._all - self._copied) / max(speed, 1)
                share = self._copied / max(self._all, 1)
                self._say(f"store: {share:.0%} copied, {speed / 1e6:.0f} MB/s, about {left:.0f} s left")


def _folders(files: Files) -> list[str]:
    return sorted({name.rpartition("/")[0] for name in files})


def list_files(store: Path) -> Files:
    """All files of a store, but for what a conversion has there while it works.

    Raises NotStagedError where there is a link or another thing that is neither file nor folder: it is not followed.
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
                    found = entry.stat(follow_symlinks=False)
                    files[name] = found.st_size, found.st_mtime_ns
                else:
                    raise NotStagedError(f"{store / name} is no file but a link")
    return files


def whole_copy(place: Path, fingerprint: str) -> Path | None:
    """The copy of the store of that fingerprint in `place`, if all of it is there, made since this node was booted."""
    mark = read_json(place / "whole.json") or {}
    if mark.get("fingerprint") != fingerprint or mark.get("boot") != this_boot():
        return None
    path = place / str(mark.get("name"))
    try:
        sizes = [size for size, _ in list_files(path).values()]
    except (NotStagedError, OSError):
        return None
    return path if (len(sizes), sum(sizes)) == (mark.get("files"), mark.get("bytes")) else None


def _in_words(error: Exception, disk: str) -> str:
    if not isinstance(error, OSError):
        return str(error).rstrip(".")
    if is_disk_full(error):
        return f"{disk} is full"
    where = f" ({error.filename})" if error.filename else ""
    return f"it cannot be copied to {disk}: {error.strerror or error}{where}"
