"""Images of the audit page as data URIs: examples, duplicates, and predictions of the memoriser."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from hpc_tumor.data.audit.audit import Audit
from hpc_tumor.data.audit.duplicates import copy_features
from hpc_tumor.data.audit.leakage import SplitAudit
from hpc_tumor.data.audit.memoriser import Match
from hpc_tumor.data.audit.patients import Conflict
from hpc_tumor.data.audit.text import contradiction
from hpc_tumor.data.patients.reference import reference
from hpc_tumor.data.splits.near_duplicates import BLUR, similarity
from hpc_tumor.data.store.ome import label_colors
from hpc_tumor.data.store.store import Store
from hpc_tumor.vocabulary import MODALITIES, TUMOUR_LABELS

PER_CLASS = 6
MOST_PAIRS = 12
MOST_MATCHES = 4
SIDE = 144  # pixels of an image
_WINDOW = (-2.0, 3.0)  # standard deviations around the brain's mean
_OPACITY = 0.55

COLORS = label_colors()


@dataclass(frozen=True)
class Picture:
    """An image of the page: its data URI, alternative text, and size in pixels."""

    source: str
    text: str
    width: int
    height: int


@dataclass(frozen=True)
class Figure:
    """Pictures in one row, with `lines` below them."""

    pictures: tuple[Picture, ...]
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Gallery:
    """Figures under one heading. `legend`: True if they show labels in colour."""

    title: str
    lead: str
    figures: tuple[Figure, ...]
    legend: bool = False


def galleries(store: Store, audit: Audit) -> list[Gallery]:
    """Build all galleries with figures. Raises DataError if an image cannot be read."""
    every = _of_images(store, audit) if store.task == "classification" else _of_volumes(store, audit)
    return [gallery for gallery in every if gallery.figures]


def encode(pixels: NDArray[np.uint8], text: str) -> Picture:
    """Encode `(H, W)` or `(H, W, 3)` as JPEG."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=88, subsampling=0)
    uri = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
    return Picture(uri, text, pixels.shape[1], pixels.shape[0])


def overlay(grey: NDArray[np.uint8], label: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Blend labels in colour over `(H, W)` grey levels: `(H, W, 3)`."""
    color = np.array([(0, 0, 0), *COLORS.values()])
    mixed = np.repeat(grey[..., None].astype(np.float64), 3, axis=2)
    inside = label > 0
    mixed[inside] = (1 - _OPACITY) * mixed[inside] + _OPACITY * color[label[inside]]
    return mixed.round().astype(np.uint8)


def windowed(plane: NDArray[Any], mean: float, deviation: float, background: float) -> NDArray[np.uint8]:
    """Convert a slice to grey levels, from two deviations below the brain's mean to three above; background black."""
    low, high = (mean + end * (deviation or 1) for end in _WINDOW)
    grey = (np.clip((plane - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    grey[plane == background] = 0
    return grey


def _of_images(store: Store, audit: Audit) -> Iterator[Gallery]:
    draw = np.random.default_rng(0)
    rows = []
    for number, name in enumerate(store.classes):
        members = np.flatnonzero(store.label == number)
        chosen = np.sort(draw.choice(members, min(PER_CLASS, len(members)), replace=False))
        if len(chosen):
            rows.append(Figure(tuple(_images(store, chosen)), (f"{name}, {len(members):,} images",)))
    yield Gallery("Examples", "Random images of each class, as stored.", tuple(rows))
    lead = (
        "Images filed under another class than the slice of the Cheng set that they show, or than a copy."
        " Splits leave them out unless data.conflicts=keep. The last picture is the descriptor of the slice, its local"
        " contrast."
    )
    places = {name: i for i, name in enumerate(store.paths)}
    if more := len(audit.conflicts) - MOST_PAIRS:
        lead += f" The first {MOST_PAIRS}; --json lists {more:,} more." if more > 0 else ""
    shown = audit.conflicts[:MOST_PAIRS]
    yield Gallery("Label conflicts", lead, tuple(_conflict(store, places, item) for item in shown))
    pairs = _duplicate_pairs(store)
    lead = (
        "One training and one test image of each set. Similarity is the correlation of the local contrast of"
        " their frames or heads, the largest over flips and rotations."
    )
    yield Gallery("Duplicates across the published parts", lead, tuple(_pair(store, *pair) for pair in pairs))
    split = audit.in_use
    yield Gallery(
        f"Closest pairs across the parts of the {split.name} split",
        "The test images that are most similar to one in training or validation. No measure finds every copy: judge by"
        " eye whether these are copies, or slices of one patient.",
        tuple(_pair(store, places[pair.nearest], places[pair.test], ("training", "test")) for pair in split.closest),
    )


def _images(store: Store, chosen: NDArray[np.int64]) -> Iterator[Picture]:
    for place, pixels in zip(chosen.tolist(), store.read_images(chosen).result(), strict=True):
        small = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        yield encode(np.asarray(small), f"{store.classes[store.label[place]]}: {store.paths[place]}")


def _conflict(store: Store, places: dict[str, int], conflict: Conflict) -> Figure:
    """Show an image, its copy of another class if there is one, and the slice if it is known."""
    image = places[conflict.path]
    shown = [image] if conflict.copy is None else [image, places[conflict.copy]]
    pictures = [*_images(store, np.array(shown))]
    if conflict.slice:
        pixels = _oriented(reference().contrast[conflict.slice - 1], store.thumbnails[image])
        small = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        pictures.append(encode(np.asarray(small), f"slice {conflict.slice} of the Cheng set: {conflict.contrary}"))
    lines = (f"{store.part[image]}: {conflict.path}", f"filed as {conflict.filed}", contradiction(conflict))
    return Figure(tuple(pictures), lines)


def _oriented(contrast: NDArray[np.int8], thumbnail: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a descriptor `(S, S)` as grey levels, flipped and turned as an image whose thumbnail is given."""
    detail = thumbnail - gaussian_filter(thumbnail.astype(np.float32), BLUR, mode="reflect")
    detail = np.asarray(Image.fromarray(detail).resize(contrast.shape, Image.Resampling.BILINEAR))
    turned = [np.rot90(side, turns) for side in (contrast, contrast.T) for turns in range(4)]
    best = max(turned, key=lambda pixels: float((pixels * detail).sum()))
    return (best.astype(np.int16) + 128).astype(np.uint8)


def _duplicate_pairs(store: Store) -> list[tuple[int, int]]:
    """Choose (training, test) pairs of duplicates: different classes first, then some near copies, then identical."""
    disagreeing: list[tuple[int, int]] = []
    near: list[tuple[int, int]] = []
    identical: list[tuple[int, int]] = []
    train = {int(group): i for i, group in reversed(list(enumerate(store.group))) if store.part[i] == "train"}
    seen: set[int] = set()
    for test in np.flatnonzero(store.part == "test").tolist():
        group = int(store.group[test])
        if group in train and group not in seen:
            seen.add(group)
            known = train[group]
            same = store.identical[known] == store.identical[test]
            kind = disagreeing if store.label[known] != store.label[test] else identical if same else near
            kind.append((known, test))
    return [*disagreeing, *near[: MOST_PAIRS // 2], *identical, *near[MOST_PAIRS // 2 :]][:MOST_PAIRS]


def _pair(store: Store, known: int, test: int, parts: Sequence[str] = ("train", "test")) -> Figure:
    both = np.array([known, test])
    correlation = max(float(similarity(small[:1], small[1:])[0, 0]) for small in copy_features(store, both))
    relation = "pixel-identical" if store.identical[known] == store.identical[test] else "not identical"
    lines = [f"{part}: {store.paths[image]}" for part, image in zip(parts, both.tolist(), strict=True)]
    if store.label[known] != store.label[test]:
        relation += ", of different classes"
    lines += [f"similarity {correlation:.4f}, {relation}", _patients_of(store, known, test)]
    return Figure(tuple(_images(store, both)), tuple(lines))


def _patients_of(store: Store, first: int, second: int) -> str:
    """Tell whether two images show one known patient."""
    names = (store.patients[first], store.patients[second]) if store.names_patients else ("", "")
    if names[0] == names[1]:
        return f"both of patient {names[0]}" if names[0] else "patients unknown"
    return f"patients {names[0] or 'unknown'} and {names[1] or 'unknown'}"


def _of_volumes(store: Store, audit: Audit) -> Iterator[Gallery]:
    counts = store.label_counts[:, :, 1:TUMOUR_LABELS].sum(axis=2)
    order = np.argsort(counts.sum(axis=1), kind="stable")[::-1].tolist()
    chosen = dict.fromkeys((order[0], order[len(order) // 2], order[-1]))
    yield Gallery(
        "Examples", "Cases with the most, median and least tumour, each at its slice with the most tumour.",
        tuple(_case(store, case, int(counts[case].argmax())) for case in chosen), legend=True,
    )  # fmt: skip
    for split in audit.splits:
        if split.memoriser and (split.leaks or split.in_use):
            yield _memorised(store, split)


def _case(store: Store, case: int, z: int) -> Figure:
    name = store.case_ids[case]
    planes, label = _planes(store, case, z)
    shown = [encode(plane, f"{role} of {name}, slice {z}") for role, plane in zip(MODALITIES, planes, strict=True)]
    shown.append(encode(overlay(planes[0], label), f"labels of {name} over FLAIR, slice {z}"))
    return Figure(tuple(shown), (f"{name}, slice {z}: {', '.join(MODALITIES)}, labels over FLAIR",))


def _memorised(store: Store, split: SplitAudit) -> Gallery:
    assert split.memoriser is not None
    places = {name: i for i, name in enumerate(store.case_ids)}
    lead = (
        "A test slice with its true labels; the most similar slice outside the test part with its labels; and the test"
        " slice with these labels, the memoriser's prediction."
    )
    figures = tuple(_match(store, places, match) for match in _best_per_patient(split.memoriser.matches))
    return Gallery(f"Memoriser in the {split.name} split", lead, figures, legend=True)


def _best_per_patient(matches: Sequence[Match]) -> list[Match]:
    """Return the most similar match of each of the first patients."""
    first: dict[str, Match] = {}
    for match in matches:
        first.setdefault(match.test, match)
    return list(first.values())[:MOST_MATCHES]


def _match(store: Store, places: dict[str, int], match: Match) -> Figure:
    assert match.slices is not None
    (planes, truth), (others, answer) = (
        _planes(store, places[name], z) for name, z in zip((match.test, match.nearest), match.slices, strict=True)
    )
    test, known = f"{match.test}, slice {match.slices[0]}", f"{match.nearest}, slice {match.slices[1]}"
    pictures = (
        encode(overlay(planes[0], truth), f"true labels over FLAIR of {test}"),
        encode(overlay(others[0], answer), f"labels over FLAIR of {known}"),
        encode(overlay(planes[0], answer), f"predicted labels over FLAIR of {test}"),
    )
    return Figure(
        pictures, (f"test: {test}", f"nearest: {known}", f"r = {match.similarity:.4f}, mean Dice {match.score:.3f}")
    )


def _planes(store: Store, case: int, z: int) -> tuple[list[NDArray[np.uint8]], NDArray[np.uint8]]:
    volume, label = store.read_volume(case).result()
    background = store.background[case].tolist()
    shown = [
        windowed(volume[c, z], mean, deviation, background[c])
        for c, (mean, deviation) in enumerate(store.statistics[case].tolist())
    ]
    return shown, label[z]
