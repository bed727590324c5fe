"""Files of a source that belong to no case: counted by kind, with a note on each kind that looks like data."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from hpc_tumor.data.case import FoundCases, SourceFile
from hpc_tumor.data.raw.classes import class_of, is_aside, is_of_masks
from hpc_tumor.data.raw.files.file_kind import DICOM, IMAGE_FORMATS, FileKind, kind_of
from hpc_tumor.data.raw.files.listing import DVC_SUFFIX, Listing, content_absent, first_bytes
from hpc_tumor.errors import DataError
from hpc_tumor.vocabulary import CLASSES, counted, listed, printable

_NIFTI = (".nii", ".nii.gz")
_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".7z", ".rar", ".gz", ".zst")
_OTHER_IMAGES = (".gif", ".heic", ".heif", ".avif", ".jp2", ".j2k", ".pgm", ".ppm", ".svg", ".psd", ".raw")
_OTHER_SCANS = (".mha", ".mhd", ".nrrd", ".nhdr", ".img", ".hdr", ".mgz", ".mgh", ".mnc", ".mat", ".npy", ".npz")
_TEXTS = (".txt", ".md", ".rst", ".csv", ".tsv", ".xls", ".xlsx", ".json", ".xml", ".yaml", ".yml", ".pdf", ".html",
          ".py", ".ipynb", ".sh", ".m", ".log", ".bib", ".cff", ".doc", ".docx", ".bval", ".bvec")  # fmt: skip
_TEXT_NAMES = re.compile(r"(?:readme|license|licence|changes|changelog|citation|makefile)$", re.IGNORECASE)
_BARE = re.compile(r"(?:^|/)(?:[^/.]+|[\d.]+)$")  # names such as IM_0001 and 1.2.840.113619.2.5
_MOST_OPENED = 64  # files without suffix
_PLACES = "into a separate folder, with names that end in _flair, _t1, _t1ce, _t2 and _seg"


@dataclass(frozen=True)
class Layout:
    """A layout of NIfTI files that is recognised by file names but not supported."""

    name: str
    pattern: re.Pattern[str]  # of paths below the source
    advice: str


BIDS = Layout(
    "BIDS", re.compile(r"(?:^|/)sub-[^/_]+_[^/]*(?:T1w|T2w|FLAIR|PDw|T2star|dseg|dwi|bold)\.nii(?:\.gz)?$"),
    f"Copy the scans of each session {_PLACES}.",
)  # fmt: skip
_DECATHLON = re.compile(r"(?:^|/)(?:images|labels)(?:Tr|Ts|Val)/[^/]+\.nii(?:\.gz)?$")
_NNUNET = Layout(
    "nnU-Net", re.compile(r"(?:^|/)images(?:Tr|Ts|Val)/[^/]+_\d{4}\.nii(?:\.gz)?$"),
    f"Copy the scans of each case {_PLACES}; dataset.json maps numbers to modalities.",
)  # fmt: skip
_MSD = Layout(
    "the Medical Segmentation Decathlon", _DECATHLON,
    f"Split the scans, and copy the modalities of each case {_PLACES}; dataset.json has their order.",
)  # fmt: skip


@dataclass(frozen=True)
class Leftovers:
    """Files of a source that belong to no case.

    Attributes:
        counts: by kind: a suffix, "without suffix", "link", "link to a folder above it", "hidden", "Zarr store",
            "pipe, socket or device".
        notes: one line for each kind of file that looks like data.
        refused: (path, reason) of links that may stand for a case.
    """

    counts: dict[str, int]
    notes: list[str]
    refused: list[tuple[str, str]]


def find_leftovers(listing: Listing, taken: Collection[str], task: str) -> Leftovers:
    """Count and classify the files and links that are not `taken`, for a dataset of this task."""
    files = [file for file in listing.files if file.relative not in taken]
    links = [link for link in listing.links if link.relative not in taken]
    counts = Counter(printable(file.suffix) or "without suffix" for file in files)
    counts["hidden"] += listing.hidden
    counts["Zarr store"] += len(listing.stores)
    counts["pipe, socket or device"] += listing.special
    counts["link to a folder above it"] += listing.upward
    refused = [(printable(link.relative), _refusal(link, link.absent)) for link in links if _may_be_data(link, task)]
    counts["link"] += len(links) - len(refused)
    counts_by_kind = {kind: count for kind, count in sorted(counts.items(), key=_by_count) if count}
    return Leftovers(counts_by_kind, _describe_data(files, task), refused)


def _by_count(item: tuple[str, int]) -> tuple[int, str]:
    return -item[1], item[0]


def require_cases(listing: Listing, found: FoundCases, wanted: str) -> FoundCases:
    """Return `found` if it has a readable case. Raises DataError with the reason if not."""
    if found.cases:
        return found
    if not found.failed:
        raise no_cases_error(listing, wanted)
    source, failed = printable(str(listing.source)), found.failed
    if found.absent and not found.refused:
        count = f"its {len(failed):,} cases" if len(failed) > 1 else "its only case"
        raise DataError(f"{source}: the content of {count} is missing: {failed[0][1]}")
    raise none_usable_error(listing.source, failed)


def none_usable_error(source: Path | str, failed: Sequence[tuple[str, str]]) -> DataError:
    """Return the error for a source whose cases all `failed`, given as (case, reason)."""
    more = f" (and {len(failed) - 1:,} more)" if len(failed) > 1 else ""
    return DataError(f"{printable(str(source))} has no usable case: {failed[0][1]}{more}")


def no_cases_error(listing: Listing, wanted: str) -> DataError:
    """Return the error for a folder without cases: what it contains instead and what to do, or what was expected."""
    source = f"{printable(str(listing.source))} contains no such dataset"
    entries = [file for file in listing.entries if file.suffix != DVC_SUFFIX]
    pointers = [(file, kind) for file in entries if (kind := content_absent(file))]
    if pointers and 2 * len(pointers) > len(entries):
        file, kind = pointers[0]
        count = f"the content of {len(pointers):,} of its {len(entries):,} files is missing"
        if len(entries) == 1:
            count = "the content of its only file is missing"
        return DataError(f"{source}: {count}. {_refusal(file, kind)}")
    if notes := _describe_data(listing.files, None):
        return DataError(f"{source}, but {' '.join(notes)}")
    if any(file.relative == "zarr.json" for file in listing.files):
        return DataError(f"{source}: it is a Zarr store. Name the folder of the raw scans or images.")
    counts = Counter(printable(file.suffix) or "no suffix" for file in listing.files)
    common = ", ".join(f"{count} × {suffix}" for suffix, count in sorted(counts.items(), key=_by_count)[:4])
    stores = f", and the Zarr store {printable(listing.stores[0])}" if listing.stores else ""
    return DataError(f"{source}: expected {wanted}; found {common or 'no files'}{stores}.")


def _refusal(file: SourceFile, kind: FileKind | None) -> str:
    assert kind is not None
    return f"{printable(str(file.path))} is {kind.text}. {kind.advice}"


def _may_be_data(link: SourceFile, task: str) -> bool:
    """Return True if an unused link may stand for a case, or for a folder of cases or of a class."""
    suffix = link.suffix
    if suffix in _TEXTS or _TEXT_NAMES.search(link.path.name):
        return False
    images = (*IMAGE_FORMATS, *_OTHER_IMAGES)
    return suffix not in (images if task == "segmentation" else (*_NIFTI, *_OTHER_SCANS))


def _describe_data(files: Sequence[SourceFile], task: str | None) -> list[str]:
    """Describe each kind of file that looks like data in one line: how many, where, and what to do.

    Args:
        task: task of the dataset; None for both.
    """
    by_suffix: dict[str, list[SourceFile]] = {}
    for file in files:
        by_suffix.setdefault(file.suffix, []).append(file)

    def of(suffixes: Collection[str]) -> list[SourceFile]:
        return [file for suffix in sorted(by_suffix) if suffix in suffixes for file in by_suffix[suffix]]

    lines = []
    if dicom := _dicom(files):
        lines.append(f"{counted(len(dicom), 'DICOM file')}, such as {_names(dicom[:1])}. {DICOM.advice}")
    if archives := of(_ARCHIVES):
        lines.append(
            f"{counted(len(archives), 'archive')} not unpacked: {_names(archives)}. Unpack the dataset's archives."
        )
    lines += _volumes(of(_NIFTI))
    if scans := of(_OTHER_SCANS):
        lines.append(f"{counted(len(scans), 'file')} of unsupported formats: {_names(scans)}. Convert scans to NIfTI.")
    if others := of((".h5", ".hdf5")):
        lines.append(f"{counted(len(others), 'HDF5 file')} not named volume_<n>_slice_<n>.h5: {_names(others)}.")
    if task == "segmentation":
        return lines
    images = of(IMAGE_FORMATS)
    in_masks = [any(is_of_masks(part) for part in PurePosixPath(file.relative).parts[:-1]) for file in images]
    if masks := [file for file, inside in zip(images, in_masks, strict=True) if inside]:
        lines.append(f"{counted(len(masks), 'image')} in folders of masks or labels: {_folders(masks)}.")
    images = [file for file, inside in zip(images, in_masks, strict=True) if not inside]
    aside: list[SourceFile] = []
    beside: list[SourceFile] = []
    rest: list[SourceFile] = []
    for file in images:
        folders = PurePosixPath(file.relative).parts[:-1]
        if any(map(class_of, folders)):
            beside.append(file)
        else:
            (aside if task and any(map(is_aside, folders)) else rest).append(file)
    if beside:
        lines.append(f"{counted(len(beside), 'image')} named as the mask of an image beside it: {_names(beside)}.")
    if aside:
        lines.append(f"{counted(len(aside), 'image')} in folders of figures or samples: {_folders(aside)}.")
    if rest:
        known = ", ".join(CLASSES)
        count = f"{counted(len(rest), 'image')} outside folders of a known class ({known}): {_folders(rest)}"
        lines.append(f"{count}. Name each folder after its class.")
    if images := of(_OTHER_IMAGES):
        lines.append(f"{counted(len(images), 'image')} of unsupported formats: {_names(images)}. Save them as PNG.")
    return lines


def _volumes(files: Sequence[SourceFile]) -> list[str]:
    bids = [file for file in files if BIDS.pattern.search(file.relative)]
    decathlon = [file for file in files if _DECATHLON.search(file.relative)]
    known = {file.relative for file in (*bids, *decathlon)}
    others = [file for file in files if file.relative not in known]
    which = _NNUNET if any(_NNUNET.pattern.search(file.relative) for file in decathlon) else _MSD
    lines = []
    for layout, matches in ((BIDS, bids), (which, decathlon)):
        if matches:
            count = f"{counted(len(matches), 'NIfTI file')} in the layout of {layout.name}, which is not supported"
            lines.append(f"{count}: {_names(matches)}. {layout.advice}")
    if others:
        lines.append(f"{counted(len(others), 'NIfTI file')} without a modality or seg in the name: {_names(others)}.")
    return lines


def _dicom(files: Sequence[SourceFile]) -> list[SourceFile]:
    """Return files with a DICOM suffix; and all files without a suffix if one of a sample of them is DICOM."""
    named = [file for file in files if file.suffix in (".dcm", ".dicom", ".ima")]
    bare = [file for file in files if _BARE.search(file.relative) and not _TEXT_NAMES.search(file.path.name)]
    opened = bare[:: max(1, -(-len(bare) // _MOST_OPENED))]
    return named + (bare if any(kind_of(first_bytes(file.path)) == DICOM for file in opened) else [])


def _folders(files: Sequence[SourceFile]) -> str:
    folders = Counter(str(PurePosixPath(file.relative).parent) for file in files)
    return listed([f"{'the source itself' if at == '.' else at} ({count:,})" for at, count in sorted(folders.items())])


def _names(files: Sequence[SourceFile]) -> str:
    return listed([file.relative for file in files])
