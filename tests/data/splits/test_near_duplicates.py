"""Near copies of a picture are found, other pictures are not, and groups do not depend on how they were found."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image
from raw_samples import list_cases, real_data
from scipy.ndimage import gaussian_filter

from hpc_tumor.data.raw.brain_mri import BrainMRIReader, decode_grey, head_box, head_thumbnail, thumbnail
from hpc_tumor.data.splits import joining, near_duplicates
from hpc_tumor.data.splits.near_duplicates import (
    BLUR,
    SIDE,
    THRESHOLD,
    features,
    near_duplicate_groups,
    nearest,
    similarity,
)

Turn = Image.Transpose


def heads(n: int) -> list[Image.Image]:
    """Smooth random textures in ellipses on black, 180 × 220 pixels."""
    y, x = np.mgrid[:220, :180]
    found = []
    for seed in range(n):
        texture = gaussian_filter(np.random.default_rng(seed).normal(0, 1, (220, 180)), 6)
        inside = ((x - 90) / 75) ** 2 + ((y - 110) / 95) ** 2 < 1
        found.append(Image.fromarray(np.where(inside, np.clip(110 + 700 * texture, 0, 200), 0).astype(np.uint8)))
    return found


def group(thumbnails: np.ndarray) -> np.ndarray:
    """Groups by the frame alone: all heads are plain."""
    return near_duplicate_groups(thumbnails, np.zeros_like(thumbnails), np.arange(len(thumbnails)))


def encoded(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("L")


def resized(image: Image.Image, factor: float) -> Image.Image:
    return image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC)


def brightened(image: Image.Image, factor: float) -> Image.Image:
    return image.point(lambda value: value * factor)


def contrasted(image: Image.Image, factor: float) -> Image.Image:
    mean = float(np.asarray(image).mean())
    return image.point(lambda value: mean + (value - mean) * factor)


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    **{f"quality {q}": (lambda image, q=q: encoded(image, q)) for q in (50, 75, 95)},
    **{f"resized {f}": (lambda image, f=f: resized(image, f)) for f in (0.5, 1.3, 2.0)},
    **{f"brightness {f}": (lambda image, f=f: brightened(image, f)) for f in (0.8, 1.2)},
    **{f"contrast {f}": (lambda image, f=f: contrasted(image, f)) for f in (0.8, 1.2)},
    **{turn.name.lower(): (lambda image, turn=turn: image.transpose(turn)) for turn in Turn},
    "all at once": lambda i: encoded(brightened(resized(i.transpose(Turn.FLIP_LEFT_RIGHT), 0.5), 1.2), 60),
}


@pytest.mark.parametrize("kind", COPIES)
def test_every_copy_is_found_and_nothing_else(kind: str) -> None:
    originals = heads(30)
    copies = [COPIES[kind](image) for image in originals]
    groups = group(np.stack([thumbnail(i) for i in (*originals, *copies)]))
    assert groups.tolist() == [*range(30), *range(30)]


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    """Every sixth sample: 146 of them."""
    folders = [real_data(name) for name in ("brain-mri", "brain-mri-native")]
    cases = [case for folder in folders for case in list_cases(BrainMRIReader(), folder)]
    return [decode_grey(case.files["image"].path)[0] for case in cases[::6]]


@pytest.mark.parametrize("kind", COPIES)
def test_copies_of_real_pictures_are_found(kind: str, pictures: list[Image.Image]) -> None:
    before = features(np.stack([thumbnail(picture) for picture in pictures]))
    after = features(np.stack([thumbnail(COPIES[kind](picture)) for picture in pictures]))
    found = [similarity(a[None], b[None]).item() >= THRESHOLD for a, b in zip(before, after, strict=True)]
    assert np.mean(found) >= 0.99
    assert len(found) == 146


def test_similarity_is_the_largest_correlation_of_local_contrast() -> None:
    """Against the definition, in space: blur, subtract, flip and turn one by one."""
    some = np.random.default_rng(0).integers(0, 255, (4, SIDE, SIDE)).astype(np.uint8)
    contrast = np.stack([image - gaussian_filter(image.astype(float), BLUR, truncate=9) for image in some])
    got = similarity(features(some), features(some))
    for i, one in enumerate(contrast):
        for j, other in enumerate(contrast):
            turns = [np.rot90(flip, k) for k in range(4) for flip in (other, other[:, ::-1])]
            expected = max(np.corrcoef(one.ravel(), turned.ravel())[0, 1] for turned in turns)
            assert got[i, j] == pytest.approx(expected, abs=2e-5)


def test_blocks_and_trees_of_edges_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    originals = [thumbnail(image) for image in heads(25)]
    order = np.random.default_rng(1).permutation(100) % 25
    thumbnails = np.stack([np.rot90(originals[i], k % 4) for k, i in enumerate(order)])
    whole = group(thumbnails)
    assert [set(order[whole == group]) for group in range(whole.max() + 1)] == [{i} for i in dict.fromkeys(order)]
    monkeypatch.setattr(near_duplicates, "BLOCK_ROWS", 7)
    monkeypatch.setattr(joining, "MOST_EDGES", 5)
    assert group(thumbnails).tolist() == whole.tolist()


def test_identical_ones_are_together_and_plain_ones_are_not() -> None:
    """A picture of one grey is like no other, unless its pixels are the same."""
    plain = np.stack([np.full((SIDE, SIDE), value, np.uint8) for value in (0, 9, 9, 200)])
    assert near_duplicate_groups(plain, plain, [0, 1, 2, 1]).tolist() == [0, 1, 2, 1]


def test_a_chain_is_one_group() -> None:
    """Of two that are alike none is left out, even where the ends of the chain are not alike."""
    one, other = (np.asarray(thumbnail(image), np.float64) for image in heads(2))
    mixed = [np.rint(one * (1 - t) + other * t).astype(np.uint8) for t in np.linspace(0, 1, 12)]
    ends = similarity(features(mixed[0][None]), features(mixed[-1][None])).item()
    assert ends < THRESHOLD
    assert set(group(np.stack(mixed)).tolist()) == {0}


def test_copies_cropped_differently_are_found_by_the_head() -> None:
    originals = heads(20)
    copies = [image.crop((-20, 10, 215, 235)) for image in originals]
    images = [*originals, *copies]
    assert len(set(group(np.stack([thumbnail(image) for image in images])))) > 20
    crops = [head_thumbnail(image.resize((256, 256), Image.Resampling.BILINEAR, head_box(image))) for image in images]
    groups = near_duplicate_groups(np.stack([thumbnail(image) for image in images]), np.stack(crops), np.arange(40))
    assert groups.tolist() == [*range(20), *range(20)]


def test_the_nearest_of_others_is_found_in_whatever_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    among = np.stack([thumbnail(head) for head in heads(7)])
    asked = np.stack([thumbnail(encoded(head, 60)) for head in (*heads(9)[5:], *heads(2))])
    asked = np.concatenate([asked, np.full((1, SIDE, SIDE), 90, np.uint8)])
    for block in (2, 1024):
        monkeypatch.setattr(near_duplicates, "BLOCK_ROWS", block)
        assert nearest(asked, among).tolist() == [5, 6, -1, -1, 0, 1, -1]
    assert nearest(asked, among[:0]).tolist() == [-1] * 7
