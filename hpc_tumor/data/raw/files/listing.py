"""Walking a raw dataset: its files, links and stores, each looked at and none followed out of it."""

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

MOST_BYTES = 2**30 + 2**20  # of a source file: 512³ voxels of 64 bits, and what stands around them
DVC_SUFFIX = ".dvc"
_ZARR = "zarr.json"  # in every folder of a Zarr store
_HIDDEN = (".", "__MACOSX")  # how names begin that are passed over
_KEY = re.compile(r"(?P<key>\w+):|\s*(?:- )?\s*path:\s*(?P<path>\S.*?)\s*$")  # a line of a .dvc file


@dataclass(frozen=True)
class SourceFile:
    """A file of the raw dataset as it was found. `relative` is its path below the source, with slashes.

    Names are those of the file system, whatever they hold: see `check_names`. `absent` says of a link that is not
    followed, and of content under DVC that was not fetched, why it is not here.
    """

    path: Path
    relative: str
    size: int  # bytes
    mtime_ns: int
    absent: FileKind | None = None

    @property
    def suffix(self) -> str:
        """The end of its name from the last dot, or from the one before `.gz`, in lower case."""
        name = self.path.name.lower()
        packed = ".gz" if name.endswith(".gz") else ""
        return Path(name.removesuffix(packed)).suffix + packed


@dataclass(frozen=True)
class Listing:
    """The contents of a source, by kind.

    Attributes:
        files: all visible files.
        links: links that are not followed, since they lead out of the source or to nothing; and files and folders in
            whose place a .dvc file stands.
        stores: folders that are Zarr stores: nothing in them is listed.
        hidden: number of hidden files and folders, passed over.
        special: number of pipes, sockets and devices.
        upward: number of links to a folder that they lie in, or to one above the source; nothing new is behind them.
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
        """Files and links by path: a link may stand where a file of a case should be."""
        return sorted([*self.files, *self.links], key=lambda file: file.relative)


def walk(source: Path) -> Listing:
    """List the files below `source`, hidden ones left out; links are followed only where they stay inside.

    A linked folder inside is listed where it stands; where that is hidden, by the link.

    Raises DataError where the folder does not exist, is no folder, or cannot be read.
    """
    source = Path(source)
    shown = printable(str(source))
    try:
        is_folder = stat.S_ISDIR(source.stat().st_mode)
    except (OSError, ValueError) as error:  # ValueError: a null character
        gone = isinstance(error, FileNotFoundError)
        what = "does not exist" if gone else f"cannot be read ({getattr(error, 'strerror', None) or error})"
        raise DataError(f"the source {shown} {what}: name the folder that holds the raw dataset.") from error
    if not is_folder:
        raise DataError(f"the source {shown} is not a folder{_instead(source)}")
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
    for found in (files, links):
        found.sort(key=lambda file: file.relative)
    return Listing(source, files, links, stores, hidden, special, upward)


def _look(entry: os.DirEntry[str], root: str, folder: str) -> tuple[str, tuple[int, int, FileKind | None]]:
    """The sort of an entry ("file", "folder", "link" for one that is not followed, "upward" for one to a folder above
    it, "special", or "" for a linked folder inside the source, which is listed where it stands), its size, its time,
    and why its content is not here. `folder` is the one that it lies in, resolved."""
    nothing = (0, 0, None)
    try:
        if entry.is_symlink():
            link, real, there = Path(entry.path), os.path.realpath(entry.path), _leads_somewhere(entry)
            if there is None:
                return "link", (0, 0, LOOP)
            if there and any(Path(below).is_relative_to(real) for below in (folder, root)):
                return "upward", nothing
            if not there or not Path(real).is_relative_to(root):
                return "link", (0, 0, kind_of_link(str(link.readlink()), real, there))
        if entry.is_dir():
            if entry.is_symlink() and not any(part.startswith(_HIDDEN) for part in Path(real).relative_to(root).parts):
                return "", nothing
            return "folder", nothing
        if entry.is_file():
            found = entry.stat()
            return "file", (found.st_size, found.st_mtime_ns, None)
    except OSError as error:
        if error.errno != errno.ENOENT:  # gone since it was listed
            raise DataError(f"{printable(entry.path)} cannot be looked at: {error.strerror}.") from error
        return "", nothing
    return "special", nothing


def _leads_somewhere(link: os.DirEntry[str]) -> bool | None:
    """Return whether something is at the place that a link leads to; None where it leads back to itself."""
    try:
        link.stat()
    except OSError as error:  # others than these say that something is there
        return None if error.errno == errno.ELOOP else error.errno not in (errno.ENOENT, errno.ENOTDIR)
    return True


def _not_fetched(files: Sequence[SourceFile], source: Path) -> Iterator[SourceFile]:
    """Files and folders inside the source that are under DVC and not there, each once."""
    named: set[str] = set()
    for file in files:
        for target in _targets(file) if file.suffix == DVC_SUFFIX else ():
            relative = os.path.normpath(PurePosixPath(file.relative).parent / target)
            outside = relative == "." or relative.startswith(("/", "../"))
            if relative not in named and not outside and not os.path.lexists(source / relative):
                named.add(relative)
                yield SourceFile(source / relative, relative, 0, 0, DVC)


def _targets(file: SourceFile) -> list[str]:
    """Paths of the content that a .dvc file stands for, below its folder; by its own name where it does not tell."""
    section, targets, folder = "", [], ""
    for line in first_bytes(file.path).decode("utf-8", "replace").splitlines():
        if match := _KEY.match(line):
            section = match["key"] or section
            if match["path"] and section == "outs":
                targets.append(match["path"].strip("'\""))
            elif section == "wdir" and match["key"]:
                folder = line.partition(":")[2].strip(" '\"") + "/"
    return [f"{folder}{target}" for target in targets] or [file.path.name[: -len(DVC_SUFFIX)]]


def _instead(source: Path) -> str:
    """The rest of the sentence for a source that is not a folder: what it is, and what to name."""
    kind = kind_of(first_bytes(source)) if source.is_file() else None
    name = source.name.lower()
    if kind == NIFTI or name.endswith((".nii", ".nii.gz")):
        return (
            " but one scan: name the folder that holds the patients, a folder with four scans and a segmentation each."
        )
    if kind == DICOM:
        return f" but a DICOM file. {DICOM.advice} Then name the folder of the patients."
    if kind is None:
        return ": name the folder that holds the raw dataset."
    if kind.packed:
        return f" but {kind.text}. {kind.advice}"
    return f" but {kind.text}: name the folder that holds the raw dataset."


def read_source(path: Path, most: int = MOST_BYTES) -> bytes:
    """Read a source file of at most `most` bytes.

    Raises DataError where it is no regular file (a pipe would be waited for without end), holds more, cannot be read,
    or changes while it is read.
    """
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            before = os.fstat(file.fileno())
            if not stat.S_ISREG(before.st_mode):
                raise DataError(f"{path} is not a regular file. Remove it, or put the file itself in its place.")
            if before.st_size > most:
                raise DataError(f"{path} holds {before.st_size:,} bytes: refused, over {most:,}.")
            data = file.read(before.st_size + 1)
            after = os.fstat(file.fileno())
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    if len(data) != after.st_size or (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise DataError(f"{path} changed while it was read. Run the same command again when it is complete.")
    return data


def first_bytes(path: Path) -> bytes:
    """The first bytes of a file, by which its kind is told; none where it cannot be read, or is no regular file."""
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            return file.read(START) if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else b""
    except OSError:
        return b""


def content_absent(file: SourceFile) -> FileKind | None:
    """The kind of link or pointer that stands in the place of the file's content; None where the content is here."""
    if file.absent is not None or not 0 < file.size <= START:
        return file.absent
    kind = kind_of(first_bytes(file.path))
    return kind if kind is not None and kind.absent else None
