"""Slices of the Cheng set are recognised in copies of all kinds, and nothing else is."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from raw_samples import list_cases, real_data
from scipy.ndimage import gaussian_filter

from hpc_tumor.data.patients.descriptors import descriptors
from hpc_tumor.data.patients.recognise import Recognised, recognise
from hpc_tumor.data.patients.reference import patient_of
from hpc_tumor.data.raw.brain_mri import BrainMRIReader, decode_grey, head_box, head_thumbnail, thumbnail

Turn, Filter = Image.Transpose, Image.Resampling
Copy = Callable[[Image.Image], Image.Image]
CROPPED = 448  # of two native images, cropped and resized


def encoded(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("L")


def changed(image: Image.Image, factor: float, around: float = 0) -> Image.Image:
    return image.point(lambda value: around + (value - around) * factor)


def cut(image: Image.Image, left: float, top: float, right: float, bottom: float) -> Image.Image:
    """Without these shares of the sides; negative ones are added in black."""
    width, height = image.size
    return image.crop((
        round(width * left), round(height * top), round(width * (1 - right)), round(height * (1 - bottom))
    ))  # fmt: skip


def bordered(image: Image.Image) -> Image.Image:
    width, height = image.size
    whole = Image.new("L", (round(width * 1.06), round(height * 1.1)), 255)
    whole.paste(image, (round(width * 0.03), round(height * 0.03)))
    ImageDraw.Draw(whole).text((5, height * 1.05), "Patient 12  T1 C+ axial", fill=0)
    return whole


def written(image: Image.Image) -> Image.Image:
    copy = image.copy()
    ImageDraw.Draw(copy).text((5, 5), "T1 C+ 12:30 AX", fill=255, font_size=max(10, image.height // 20))
    return copy


COPIES: dict[str, Copy] = {
    "plain": lambda image: image,
    **{turn.name.lower(): (lambda image, turn=turn: image.transpose(turn)) for turn in Turn},
    **{f"rotated {a}": (lambda image, a=a: image.rotate(a, Filter.BICUBIC)) for a in (-5, -3, 3, 5)},
    **{f"cut {c}": (lambda image, c=c: cut(image, c, c, c, c)) for c in (0.04, 0.08, -0.04, -0.08)},
    **{f"cut above {c}": (lambda image, c=c: cut(image, 0, c, 0, 0)) for c in (0.04, 0.08)},
    **{f"wider {c}": (lambda image, c=c: cut(image, 0, 0, -c, 0)) for c in (0.04, 0.08)},
    **{f"quality {q}": (lambda image, q=q: encoded(image, q)) for q in (50, 75)},
    **{f"brightness {f}": (lambda image, f=f: changed(image, f)) for f in (0.7, 1.3)},
    **{f"contrast {f}": (lambda i, f=f: changed(i, f, float(np.asarray(i).mean()))) for f in (0.7, 1.3)},
    **{f"{n} pixels": (lambda image, n=n: image.resize((n, n), Filter.BICUBIC)) for n in (96, 224, 768)},
    "border": bordered,
    "text": written,
}


def recognised(images: list[Image.Image]) -> Recognised:
    crops = [image.resize((256, 256), Filter.BILINEAR, head_box(image)) for image in images]
    return recognise(np.stack([thumbnail(image) for image in images]), np.stack([head_thumbnail(c) for c in crops]))


def rebuilt(number: int) -> Image.Image:
    """The picture of a slice as its descriptor shows it, 256 × 256 pixels."""
    picture = descriptors().pictures[1][number - 1]
    picture = np.clip((picture - np.percentile(picture, 10)) / np.ptp(picture) * 230, 0, 255)
    return Image.fromarray(picture.astype(np.uint8)).resize((256, 256), Filter.BICUBIC)


@pytest.fixture(scope="module")
def slices() -> dict[int, Image.Image]:
    return {number: rebuilt(number) for number in range(50, 3065, 430)}


@pytest.mark.parametrize("kind", COPIES)
def test_copies_of_known_slices_are_recognised(kind: str, slices: dict[int, Image.Image]) -> None:
    found = recognised([COPIES[kind](image) for image in slices.values()])
    assert found.slice.tolist() == list(slices)
    assert found.patients == [patient_of(number) for number in slices]


def test_a_picture_of_two_patients_is_neither(slices: dict[int, Image.Image]) -> None:
    images = list(slices.values())
    mixed = [Image.blend(one, other, 0.5) for one, other in pairwise(images)]
    assert not recognised(mixed).slice.any()


def test_pictures_that_are_none_of_the_slices_are_unknown() -> None:
    y, x = np.mgrid[:256, :256]
    inside = ((x - 128) / 90) ** 2 + ((y - 128) / 110) ** 2 < 1
    textures = [gaussian_filter(np.random.default_rng(seed).normal(0, 1, (256, 256)), 7) for seed in range(12)]
    heads = [np.where(inside, np.clip(110 + 900 * texture, 0, 230), 0).astype(np.uint8) for texture in textures]
    heads += [np.where(inside, np.random.default_rng(seed).integers(80, 255, (256, 256)), 0) for seed in range(4)]
    others = [np.full((256, 256), level, np.uint8) for level in (0, 90)] + [textures[0] * 0 + x, textures[0] * 0 + y]
    found = recognised([Image.fromarray(np.asarray(picture).astype(np.uint8)) for picture in (*heads, *others)])
    assert not found.slice.any()
    assert found.patients == [""] * 20
    assert 0 < found.correlation[:12].max() < 0.9


def native_slices() -> dict[int, Path]:
    return {int(path.stem): path for path in sorted(real_data("cheng").glob("native/*/*.jpg"))}


@pytest.mark.parametrize("kind", COPIES)
def test_copies_of_native_slices_are_recognised(kind: str) -> None:
    paths = dict(list(native_slices().items())[::16])
    found = recognised([COPIES[kind](decode_grey(path)[0]) for path in paths.values()])
    assert found.patients == [patient_of(number) for number in paths]


def family(kind: str) -> str:
    """The kind without its amount; cuts and paddings are one, and so are flips and turns."""
    name = kind.split()[0]
    return {"wider": "cut"}.get(name, "turned" if name in {turn.name.lower() for turn in Turn} else name)


@pytest.mark.campaign
@pytest.mark.parametrize("name", sorted(set(map(family, COPIES))))
def test_copies_of_all_native_slices_are_recognised(name: str) -> None:
    paths, right = native_slices(), list[bool]()
    assert len(paths) == 125
    for kind in COPIES:
        if family(kind) == name:
            found = recognised([COPIES[kind](decode_grey(path)[0]) for path in paths.values()]).patients
            assert {patient for patient, number in zip(found, paths, strict=True) if patient != patient_of(number)} <= {
                ""
            }
            right += [patient == patient_of(number) for number, patient in zip(paths, found, strict=True)]
    assert np.mean(right) >= (1 if name == "plain" else 0.98)


@pytest.mark.slow
def test_the_slices_in_the_sample_are_recognised_and_no_other_image() -> None:
    folder = real_data("brain-mri")
    with (real_data("cheng") / "expected-in-brain-mri-sample.csv").open() as file:
        expected = {row["path"]: int(row["index"]) for row in csv.DictReader(file)}
    cases = list_cases(BrainMRIReader(), folder)
    found = recognised([decode_grey(case.files["image"].path)[0] for case in cases])
    known = {case.id: number for case, number in zip(cases, found.slice.tolist(), strict=True) if number}
    assert len(expected) == 544
    assert known == expected


def test_eleven_native_images_are_slices() -> None:
    """The nine that are listed, and two that were cropped and resized; the other 53 are none."""
    cases = list_cases(BrainMRIReader(), real_data("brain-mri-native"))
    found = recognised([decode_grey(case.files["image"].path)[0] for case in cases])
    known = {case.id: number for case, number in zip(cases, found.slice.tolist(), strict=True) if number}
    listed = {"gg (1)", "gg (10)", "p (1)", *(f"gg ({n})" for n in range(100, 106))}
    others = {f"Testing/pituitary_tumor/image({n}).jpg": CROPPED for n in (1, 2)}
    assert {Path(name).stem for name in known.keys() - others.keys()} == listed
    assert {name: known[name] for name in others} == others
    assert len(cases) == 64
