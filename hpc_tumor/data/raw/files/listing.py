"""Listing of a raw dataset: its files, links and Zarr stores. No link is followed out of it."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from hpc_tumor.data.raw.files.file_kind import DICOM, DVC, LOOP, NIFTI, START, FileKind, kind_of, kind_of_link
from hpc_tumor.errors import DataError
from hpc_tumor.vocabulary import printable

MOST_BYTES = 2**30 + 2**20  # of a source file: 512³ voxels of 64 bits, and headers
DVC_SUFFIX = ".dvc"
_ZARR = "zarr.json"  # in every folder of a Zarr store
_HIDDEN = (".", "__MACOSX")  # prefixes of hidden names
_KEY = re.compile(r"(?P<key>\w+):|\s*(?:- )?\s*path:\s*(?P<path>\S.*?)\s*$")  # a line of a .dvc file


@dataclass(frozen=True)
class SourceFile:
    """A file of the raw dataset. `relative` is its path below the source, with slashes.

    Names are unchecked: see `check_names`. `absent` is the reason for missing content: a link that is not followed, or
    DVC content that was not fetched.
    """

    path: Path
    relative: str
    size: int  # bytes
    mtime_ns: int
    absent: FileKind | None = None

    @property
    def suffix(self) -> str:
        """Suffix in lower case, including the one before `.gz`."""
        name = self.path.name.lower()
        packed = ".gz" if name.endswith(".gz") else ""
        return Path(name.removesuffix(packed)).suffix + packed


@dataclass(frozen=True)
class Listing:
    """The contents of a source, by kind.

    Attributes:
        files: all visible files.
        links: links that are not followed (out of the source, or broken), and files and folders that a .dvc file
            stands for.
        stores: Zarr stores, whose content is not listed.
        hidden: number of hidden files and folders, which are skipped.
        special: number of pipes, sockets and devices.
        upward: number of links to a folder above them.
    """

    source: Path
    files: Sequence[SourceFile]
    links: Sequence[SourceFile] = ()
    stores: Sequence[str] = ()
    hidden: int = 0
    special: int = 0
    upward: int = 0

    @property
    def entries(self) -> list[SourceFile]:
        """Files and links by path: a link may replace a case's file."""
        return sorted([*self.files, *self.links], key=lambda file: file.relative)


def walk(source: Path) -> Listing:
    """List the files below `source` except hidden ones; links are followed only inside the source.

    A linked folder inside the source is listed at its real path, or at the link if that path is hidden.

    Raises DataError if `source` does not exist, is not a folder, or cannot be read.
    """
    source = Path(source)
    shown = printable(str(source))
    try:
        is_folder = stat.S_ISDIR(source.stat().st_mode)
    except (OSError, ValueError) as error:  # ValueError: a null character
        absent = isinstance(error, FileNotFoundError)
        fault = "does not exist" if absent else f"cannot be read ({getattr(error, 'strerror', None) or error})"
        raise DataError(f"the source {shown} {fault}: name the folder of the raw dataset.") from error
    if not is_folder:
        raise DataError(f"the source {shown} is not a folder{_describe_non_folder(source)}")
    root = os.path.realpath(source)
    files: list[SourceFile] = []
    links: list[SourceFile] = []
    stores: list[str] = []
    hidden = special = upward = 0
    pending = [(source, root)]
    seen: set[str] = set()
    while pending:
        folder, real = pending.pop()
        if real in seen:
            continue
        seen.add(real)
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            raise DataError(f"{printable(str(folder))} cannot be listed: {error.strerror}.") from error
        if folder != source and any(entry.name == _ZARR for entry in entries):
            stores.append(folder.relative_to(source).as_posix())
            continue
        for entry in entries:
            if entry.name.startswith(_HIDDEN):
                hidden += 1
                continue
            path = folder / entry.name
            kind, about = _look(entry, root, real)
            file = SourceFile(path, path.relative_to(source).as_posix(), *about)
            if kind == "link":
                links.append(file)
            elif kind == "folder":
                pending.append((path, os.path.realpath(path) if entry.is_symlink() else f"{real}/{entry.name}"))
            elif kind == "file":
                files.append(file)
            special += kind == "special"
            upward += kind == "upward"
    links += _not_fetched(files, source)
    for entries_by_kind in (files, links):
        entries_by_kind.sort(key=lambda file: file.relative)
    return Listing(source, files, links, stores, hidden, special, upward)


def _look(entry: os.DirEntry[str], root: str, folder: str) -> tuple[str, tuple[int, int, FileKind | None]]:
    """Return an entry's kind, and its size, time, and reason for missing content.

    The kind is "file", "folder", "link" (not followed), "upward" (a link to a folder above), "special", or "" for a
    linked folder inside the source, which is listed at its real path. `folder` is the entry's folder, resolved.
    """
    nothing = (0, 0, None)
    try:
        if entry.is_symlink():
            link, real, exists = Path(entry.path), os.path.realpath(entry.path), _target_exists(entry)
            if exists is None:
                return "link", (0, 0, LOOP)
            if exists and any(Path(below).is_relative_to(real) for below in (folder, root)):
                return "upward", nothing
            if not exists or not Path(real).is_relative_to(root):
                return "link", (0, 0, kind_of_link(str(link.readlink()), real, exists))
        if entry.is_dir():
            if entry.is_symlink() and not any(part.startswith(_HIDDEN) for part in Path(real).relative_to(root).parts):
                return "", nothing
            return "folder", nothing
        if entry.is_file():
            status = entry.stat()
            return "file", (status.st_size, status.st_mtime_ns, None)
    except OSError as error:
        if error.errno != errno.ENOENT:  # removed since it was listed
            raise DataError(f"{printable(entry.path)} cannot be read: {error.strerror}.") from error
        return "", nothing
    return "special", nothing


def _target_exists(link: os.DirEntry[str]) -> bool | None:
    """Return True if a link's target exists, or None for a loop."""
    try:
        link.stat()
    except OSError as error:  # any other error means that the target exists
        return None if error.errno == errno.ELOOP else error.errno not in (errno.ENOENT, errno.ENOTDIR)
    return True


def _not_fetched(files: Sequence[SourceFile], source: Path) -> Iterator[SourceFile]:
    """Yield files and folders inside the source that are tracked by DVC but absent, each once."""
    named: set[str] = set()
    for file in files:
        for target in _targets(file) if file.suffix == DVC_SUFFIX else ():
            relative = os.path.normpath(PurePosixPath(file.relative).parent / target)
            outside = relative == "." or relative.startswith(("/", "../"))
            if relative not in named and not outside and not os.path.lexists(source / relative):
                named.add(relative)
                yield SourceFile(source / relative, relative, 0, 0, DVC)


def _targets(file: SourceFile) -> list[str]:
    """Return the paths that a .dvc file tracks, relative to its folder; by default, its own name without suffix."""
    section, targets, folder = "", [], ""
    for line in first_bytes(file.path).decode("utf-8", "replace").splitlines():
        if match := _KEY.match(line):
            section = match["key"] or section
            if match["path"] and section == "outs":
                targets.append(match["path"].strip("'\""))
            elif section == "wdir" and match["key"]:
                folder = line.partition(":")[2].strip(" '\"") + "/"
    return [f"{folder}{target}" for target in targets] or [file.path.name[: -len(DVC_SUFFIX)]]


def _describe_non_folder(source: Path) -> str:
    kind = kind_of(first_bytes(source)) if source.is_file() else None
    name = source.name.lower()
    if kind == NIFTI or name.endswith((".nii", ".nii.gz")):
        return " but a scan: name the folder of the patients, each a folder with four scans and a segmentation."
    if kind == DICOM:
        return f" but a DICOM file. {DICOM.advice} Then name the folder of the patients."
    if kind is None:
        return ": name the folder of the raw dataset."
    if kind.packed:
        return f" but {kind.text}. {kind.advice}"
    return f" but {kind.text}: name the folder of the raw dataset."


def read_source(path: Path, most: int = MOST_BYTES) -> bytes:
    """Read a source file of at most `most` bytes.

    Raises DataError if it is not a regular file (reading a pipe would block), is larger, cannot be read, or changes
    while it is read.
    """
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            before = os.fstat(file.fileno())
            if not stat.S_ISREG(before.st_mode):
                raise DataError(f"{path} is not a regular file. Remove it, or replace it with the file.")
            if before.st_size > most:
                raise DataError(f"{path} has {before.st_size:,} bytes; the limit is {most:,}.")
            data = file.read(before.st_size + 1)
            after = os.fstat(file.fileno())
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    if len(data) != after.st_size or (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise DataError(f"{path} changed while it was read. Run the same command again when the file is complete.")
    return data


def first_bytes(path: Path) -> bytes:
    """Read the first `START` bytes of a file; empty if it cannot be read or is not a regular file."""
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            return file.read(START) if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else b""
    except OSError:
        return b""


def content_absent(file: SourceFile) -> FileKind | None:
    """Return the kind of link or pointer that replaces the file's content, or None if the content is present."""
    if file.absent is not None or not 0 < file.size <= START:
        return file.absent
    kind = kind_of(first_bytes(file.path))
    return kind if kind is not None and kind.absent else None
