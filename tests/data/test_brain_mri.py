"""The Brain MRI reader: modes, orientation, crop, names, duplicates, and refusals."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from raw_samples import picture, real_data, write_pictures

from hpc_tumor.data.brain_mri import (
    BrainMRIReader,
    _percentile,
    class_of,
    decode_grey,
    head_box,
    reduced,
    thumbnail,
)
from hpc_tumor.data.case import CaseData
from hpc_tumor.data.sources import detect_reader
from hpc_tumor.errors import DataError

READER = BrainMRIReader()


def read_one(folder: Path, image: Image.Image, name: str = "a.png", **options: object) -> CaseData:
    target = folder / "Training" / "glioma"
    target.mkdir(parents=True, exist_ok=True)
    image.save(target / name, **options)
    (case,) = [case for case in READER.list_cases(folder) if case.id.endswith(name)]
    return READER.read_case(case)


def test_all_native_images_convert() -> None:
    cases = READER.list_cases(real_data("brain-mri-native"))
    images = [READER.read_case(case) for case in cases]
    assert len(images) == 64
    assert {data.image.shape for data in images} == {(256, 256)}
    assert len({tuple(data.meta["size"]) for data in images}) > 20
    assert {case.meta["class"] for case in cases} == {"glioma", "meningioma", "notumor", "pituitary"}
    assert [case.meta["part"] for case in cases].count("test") == 32


def test_the_crop_keeps_the_head() -> None:
    """On the real images the box is inside the picture, and what it cuts off is dark."""
    for case in READER.list_cases(real_data("brain-mri-native")):
        grey, _ = decode_grey(case.files["image"].path)
        left, top, right, bottom = head_box(grey)
        pixels = np.asarray(grey).astype(float)
        assert 0 <= left < right <= grey.width
        assert 0 <= top < bottom <= grey.height
        inside = pixels[top:bottom, left:right]
        outside = (pixels.sum() - inside.sum()) / max(pixels.size - inside.size, 1)
        assert outside < 0.35 * inside.mean(), case.id
        assert inside.size > 0.25 * pixels.size


def test_a_skull_apart_from_the_brain_is_kept() -> None:
    y, x = np.mgrid[:200, :200]
    radius = np.hypot(y - 100, x - 100)
    pixels = np.where(radius < 60, 120, np.where((radius > 66) & (radius < 72), 150, 0)).astype(np.uint8)
    assert head_box(Image.fromarray(pixels)) == (29, 29, 172, 172)


def test_crop_box_is_the_bounding_box_of_the_largest_region() -> None:
    pixels = np.zeros((100, 120), np.uint8)
    pixels[20:80, 30:100] = 150
    pixels[5:9, 5:20] = 255  # a label in the corner
    assert head_box(Image.fromarray(pixels)) == (30, 20, 100, 80)
    assert head_box(Image.fromarray(np.zeros((50, 40), np.uint8))) == (0, 0, 40, 50)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "LA"])
def test_modes_give_one_picture(tmp_path: Path, mode: str) -> None:
    grey = read_one(tmp_path / "grey", picture(1))
    other = read_one(tmp_path / mode, picture(1).convert(mode))
    np.testing.assert_array_equal(grey.image, other.image)
    assert grey.meta["sha256"] == other.meta["sha256"]
    assert (grey.meta["mode"], other.meta["mode"]) == ("L", mode)


def test_cmyk_and_sixteen_bits(tmp_path: Path) -> None:
    grey = read_one(tmp_path / "grey", picture(1))
    cmyk = read_one(tmp_path / "cmyk", picture(1).convert("RGB").convert("CMYK"), "a.jpg", quality=100)
    assert np.abs(grey.image.astype(int) - cmyk.image).mean() < 4
    deep = np.asarray(picture(1)).astype(np.uint16) * 16  # twelve bits of sixteen, as scanners give
    scaled = read_one(tmp_path / "deep", Image.fromarray(deep))
    assert scaled.image.max() > 240
    assert np.corrcoef(scaled.image.ravel(), grey.image.ravel())[0, 1] > 0.999


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    """Pillow's own transposition is the second way to the same pixels."""
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    read_one(tmp_path, picture(2), "a.jpg", exif=exif)
    path = tmp_path / "Training" / "glioma" / "a.jpg"
    mine, _ = decode_grey(path)
    with Image.open(path) as image:
        theirs = ImageOps.exif_transpose(image)
    np.testing.assert_array_equal(np.asarray(mine), np.asarray(theirs))


def test_renamed_and_repacked_copies_have_one_hash(tmp_path: Path) -> None:
    a = read_one(tmp_path, picture(3), "a (1).png", compress_level=1)
    b = read_one(tmp_path, picture(3), "b[2].png", compress_level=9)
    c = read_one(tmp_path, picture(4), "c.png")
    assert a.meta["sha256"] == b.meta["sha256"] != c.meta["sha256"]


def test_names_that_stand_for_classes() -> None:
    assert [class_of(n) for n in ("glioma_tumor", "Glioma", "no_tumor", "notumor", "No Tumor", "pituitary_tumor")] == [
        "glioma", "glioma", "notumor", "notumor", "notumor", "pituitary",
    ]  # fmt: skip
    assert class_of("cats") is None
    assert class_of("tumor") is None


def test_hidden_folders_and_other_files_are_not_images(tmp_path: Path) -> None:
    write_pictures(tmp_path, 1)
    hidden = tmp_path / "Training" / "glioma" / ".ipynb_checkpoints"
    hidden.mkdir()
    picture(0).save(hidden / "x-checkpoint.png")
    (tmp_path / "Training" / "glioma" / "._a.png").write_bytes(b"x")
    (tmp_path / "Training" / "glioma" / "notes.txt").write_bytes(b"x")
    picture(0).save(tmp_path / "preview.png")
    assert len(READER.list_cases(tmp_path)) == 8
    assert detect_reader(tmp_path).name == "brain-mri"


def test_tree_without_parts_is_training(tmp_path: Path) -> None:
    write_pictures(tmp_path / "x", 1)
    assert {case.meta["part"] for case in READER.list_cases(tmp_path / "x" / "Training")} == {"train"}


def test_unknown_class_beside_known_ones(tmp_path: Path) -> None:
    write_pictures(tmp_path, 1)
    (tmp_path / "Training" / "cats").mkdir()
    picture(0).save(tmp_path / "Training" / "cats" / "a.png")
    with pytest.raises(DataError, match=r"cats is a folder of the unknown class 'cats'\. Known: glioma"):
        READER.list_cases(tmp_path)


def refuse(path: Path, data: bytes, words: str) -> None:
    path.write_bytes(data)
    with pytest.raises(DataError, match=words) as caught:
        decode_grey(path)
    assert str(path) in str(caught.value)


def test_bad_images_are_named(tmp_path: Path) -> None:
    picture(0, (400, 400)).save(tmp_path / "good.jpg")
    data = (tmp_path / "good.jpg").read_bytes()
    refuse(tmp_path / "a.jpg", b"hello", "not a JPEG or PNG image")
    refuse(tmp_path / "b.jpg", b"", "not a JPEG or PNG image")
    refuse(tmp_path / "c.jpg", data[: len(data) // 2], "truncated")
    refuse(tmp_path / "d.png", b"BM" + bytes(500), "not a JPEG or PNG image")


@pytest.mark.parametrize("side", [12_000, 100_000])
def test_bomb_is_refused_before_it_is_decoded(tmp_path: Path, side: int) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    refuse(tmp_path / "bomb.png", bomb, "claims")


def test_luma_of_a_jpeg_is_its_grey(tmp_path: Path) -> None:
    """Decoded without its colours, at full size: the same as through RGB, true colours up to rounding."""
    grey = picture(5, (203, 151))
    colours = Image.merge("RGB", [picture(seed, (203, 151)).reduce(8).resize((203, 151)) for seed in (1, 2, 3)])
    for name, image, most in (("grey.jpg", grey.convert("RGB"), 0), ("colours.jpg", colours, 2)):
        image.save(tmp_path / name, quality=90)
        mine, mode = decode_grey(tmp_path / name)
        with Image.open(tmp_path / name) as opened:
            theirs = opened.convert("L")
        assert (mode, mine.mode, mine.size) == ("RGB", "L", (203, 151))
        fit = colours_fit(tmp_path / name)
        assert fit.mean() > 0.5
        assert np.abs(np.asarray(mine)[fit].astype(int) - np.asarray(theirs)[fit]).max() <= most


def colours_fit(path: Path) -> np.ndarray:
    """Where no colour was cut off at 0 or 255, so that grey can be made of them."""
    with Image.open(path) as image:
        pixels = np.asarray(image)
    grey = (pixels == pixels[..., :1]).all(axis=-1)
    return grey | ((pixels > 0) & (pixels < 255)).all(axis=-1)


@pytest.mark.parametrize("share", [0.0, 0.37, 0.99, 1.0])
def test_percentile_of_a_histogram_is_numpys(share: float) -> None:
    for seed, count in ((0, 1), (1, 2), (2, 999)):
        values = np.random.default_rng(seed).integers(0, 256, count).astype(np.uint8)
        expected = np.percentile(values, 100 * share)
        assert _percentile(np.bincount(values, minlength=256).tolist(), share) == pytest.approx(expected)


def test_sketch_gives_the_same_box_and_thumbnail() -> None:
    large = picture(6, (1000, 760))
    assert head_box(large) == head_box(large, reduced(large))
    np.testing.assert_array_equal(thumbnail(large), thumbnail(large, reduced(large)))
    exact = np.asarray(large.resize((32, 32), Image.Resampling.HAMMING)).astype(int)
    assert np.abs(exact - thumbnail(large)).mean() < 1
