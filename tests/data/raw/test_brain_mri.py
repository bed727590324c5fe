"""The Brain MRI reader: modes, orientation, crop, names, duplicates, and refusals."""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
from PIL import Image
from raw_samples import list_cases, picture, real_data, write_pictures

from hpc_tumor.data.case import CaseData
from hpc_tumor.data.convert.prepare import prepare_dataset
from hpc_tumor.data.raw.brain_mri import (
    BrainMRIReader,
    class_of,
    decode_grey,
    head_box,
    percentile_of,
    reduced,
    thumbnail,
)
from hpc_tumor.data.raw.sources import inspect_source
from hpc_tumor.errors import DataError

READER = BrainMRIReader()


def read_one(folder: Path, image: Image.Image, name: str = "a.png", **options: object) -> CaseData:
    target = folder / "Training" / "glioma"
    target.mkdir(parents=True, exist_ok=True)
    image.save(target / name, **options)
    (case,) = [case for case in list_cases(READER, folder) if case.id.endswith(name)]
    return READER.read_case(case)


def test_all_native_images_convert() -> None:
    cases = list_cases(READER, real_data("brain-mri-native"))
    images = [READER.read_case(case) for case in cases]
    assert len(images) == 64
    assert {data.image.shape for data in images} == {(256, 256)}
    assert len({tuple(data.meta["size"]) for data in images}) > 20
    assert {case.meta["class"] for case in cases} == {"glioma", "meningioma", "notumor", "pituitary"}
    assert [case.meta["part"] for case in cases].count("test") == 32


def test_the_crop_keeps_the_head() -> None:
    """On the real images the box is inside the picture, and what it cuts off is dark."""
    for case in list_cases(READER, real_data("brain-mri-native")):
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
    for names, kind in (
        (("512Glioma", "Brain_Glioma", "2 - glioma (1)", "gliomas"), "glioma"),
        (("512Normal", "normal", "Healthy", "no", "None", "non-tumor", "No Tumour", "NORMAL_BRAIN_MRI"), "notumor"),
        (("Pituitary Adenoma", "pituitary_tumors"), "pituitary"), (("meningioma_scans",), "meningioma"),
        (("cats", "tumor", "yes", "1", "normal pituitary", "no_glioma", "glioblastoma", "brain", ""), None),
    ):  # fmt: skip
        assert {name: class_of(name) for name in names} == dict.fromkeys(names, kind)


def test_hidden_folders_and_other_files_are_not_images(tmp_path: Path) -> None:
    write_pictures(tmp_path, 1)
    hidden = tmp_path / "Training" / "glioma" / ".ipynb_checkpoints"
    hidden.mkdir()
    picture(0).save(hidden / "x-checkpoint.png")
    (tmp_path / "Training" / "glioma" / "._a.png").write_bytes(b"x")
    (tmp_path / "Training" / "glioma" / "notes.txt").write_bytes(b"x")
    picture(0).save(tmp_path / "preview.png")
    assert len(list_cases(READER, tmp_path)) == 8
    assert inspect_source(tmp_path).reader.name == "brain-mri"


def test_tree_without_parts_is_training(tmp_path: Path) -> None:
    write_pictures(tmp_path / "x", 1)
    assert {case.meta["part"] for case in list_cases(READER, tmp_path / "x" / "Training")} == {"train"}


def test_unknown_class_beside_known_ones(tmp_path: Path) -> None:
    write_pictures(tmp_path, 1)
    (tmp_path / "Training" / "cats").mkdir()
    picture(0).save(tmp_path / "Training" / "cats" / "a.png")
    with pytest.raises(DataError, match=r"cats: unknown class 'cats'\. Known: glioma"):
        list_cases(READER, tmp_path)


def test_folder_beside_known_classes_is_never_dropped(tmp_path: Path) -> None:
    """Also where there is no Training or Testing, and where the image lies deeper."""
    source = write_pictures(tmp_path / "x", 1) / "Training"
    (source / "notumor").rename(source / "512Normal")
    assert {case.meta["class"] for case in list_cases(READER, source)} == {
        "glioma",
        "meningioma",
        "notumor",
        "pituitary",
    }
    for name in ("cats", "yes"):
        (source / "512Normal").rename(source / name)
        with pytest.raises(DataError, match=f"{name}: unknown class '{name}'"):
            list_cases(READER, source)
        (source / name / "deep").mkdir()
        next((source / name).glob("*.png")).rename(source / name / "deep" / "a.png")
        with pytest.raises(DataError, match=f"{name}: unknown class '{name}'"):
            list_cases(READER, source)
        shutil.rmtree(source / name / "deep")
        picture(0).save(source / name / "a.png")
        (source / name).rename(source / "512Normal")


def test_all_unknown_classes_are_named_at_once(tmp_path: Path) -> None:
    source = write_pictures(tmp_path, 1)
    for name in ("Training/cats", "Testing/dogs", "Training/1"):
        (source / name).mkdir()
        picture(0).save(source / name / "a.png")
    with pytest.raises(DataError, match="folders of unknown classes: Testing/dogs, Training/1, Training/cats"):
        list_cases(READER, source)


@pytest.mark.parametrize("parts", [False, True])
def test_folders_of_figures_beside_class_folders_are_left_out_and_named(tmp_path: Path, parts: bool) -> None:
    source = write_pictures(tmp_path, 1) / ("" if parts else "Training")
    for name in ("figures", "docs", "images_preview", "Sample Images"):
        (source / name).mkdir()
        picture(0).save(source / name / "a.png")
    report = inspect_source(source)
    assert (len(report.cases), report.not_taken) == (8 if parts else 4, {".png": 4})
    assert report.notes == [
        "not used: 4 images in folders of figures or samples: Sample Images (1), docs (1), figures (1) and 1 more."
    ]


def test_a_class_folder_in_that_of_another_class_is_refused(tmp_path: Path) -> None:
    source = write_pictures(tmp_path, 1)
    (source / "Training" / "glioma" / "normal").mkdir()
    picture(0).save(source / "Training" / "glioma" / "normal" / "a.png")
    with pytest.raises(
        DataError, match=r"glioma/normal: the folder of class notumor is inside glioma, a folder of class glioma"
    ):
        list_cases(READER, source)
    (source / "Training" / "glioma" / "normal").rename(source / "Training" / "glioma" / "glioma_tumor")
    assert len(list_cases(READER, source)) == 9


def test_masks_above_the_classes_and_beside_their_images_are_no_images(tmp_path: Path) -> None:
    for part in ("images", "masks"):
        write_pictures(tmp_path / "labelled" / part, 1)
    beside = tmp_path / "labelled" / "images" / "Training" / "glioma"
    picture(0).save(beside / "0.jpg")
    for name in ("0_mask.png", "mask-0.png"):
        picture(0).save(beside / name)
    picture(7).save(beside / "7_mask.png")  # an image of that name, since there is no 7
    report = inspect_source(tmp_path / "labelled")
    assert len(report.cases) == 10
    assert {case.id.split("/")[0] for case in report.cases} == {"images"}
    assert {case.files["image"].path.name for case in report.cases} >= {"0.jpg", "7_mask.png"}
    masks, named = report.notes
    assert masks.startswith("not used: 8 images in folders of masks or labels: masks/")
    assert "2 images named as the mask of an image beside it: images/Training/glioma/0_mask.png, images" in named
    assert len(inspect_source(tmp_path).cases) == 18 - 8  # a name such as "labelled" above everything says nothing


def test_images_below_a_class_folder_are_of_that_class(tmp_path: Path) -> None:
    source = write_pictures(tmp_path, 1)
    for folder in ("Training/glioma/part 1/axial", "Testing/notumor/sub", "Training/glioma/masks"):
        (source / folder).mkdir(parents=True)
        picture(0).save(source / folder / "deep.png")
    report = inspect_source(source)
    deep = {case.id: (case.meta["class"], case.meta["part"]) for case in report.cases if case.id.endswith("deep.png")}
    assert deep == {
        "Training/glioma/part 1/axial/deep.png": ("glioma", "train"),
        "Testing/notumor/sub/deep.png": ("notumor", "test"),
    }
    assert report.notes == ["not used: 1 image in folders of masks or labels: Training/glioma/masks (1)."]
    assert report.not_taken == {".png": 1}


def test_a_source_whose_classes_do_not_map_is_asked_for(tmp_path: Path) -> None:
    for name in ("1", "2", "3"):
        (tmp_path / name).mkdir()
        picture(0).save(tmp_path / name / "a.png")
    with pytest.raises(DataError, match=r"3 images outside folders of a known class .*: 1 \(1\), 2 \(1\), 3 \(1\)"):
        inspect_source(tmp_path)
    picture(0).save(tmp_path / "loose.gif")
    with pytest.raises(DataError, match=r"1 image of unsupported formats: loose\.gif\. Save them as PNG"):
        inspect_source(tmp_path)


def test_one_class_is_no_dataset(tmp_path: Path) -> None:
    source = write_pictures(tmp_path / "raw", 2) / "Training" / "glioma"
    with pytest.raises(DataError, match=r"only one class, glioma: .* Name the folder above it, .*Training, which"):
        prepare_dataset(READER, source, tmp_path / "s.zarr", workers=1)
    assert not (tmp_path / "s.zarr").exists()
    shutil.rmtree(source.parent / "notumor")
    report = inspect_source(source.parent)
    assert report.notes == ["no images of class notumor"]


@pytest.mark.parametrize("mode", ["L", "RGB", "1", "P", "RGBA"])
@pytest.mark.parametrize("ending", ["bmp", "tif", "tiff", "webp", "jfif", "jpe", "PNG"])
def test_every_suffix_gives_the_same_picture(tmp_path: Path, ending: str, mode: str) -> None:
    lossy = ending in ("jfif", "jpe")
    if lossy and mode not in ("L", "RGB"):
        pytest.skip("JPEG has no such mode")
    image = picture(1, (160, 120)).convert(mode)
    options = {"webp": {"lossless": True}, "jfif": {"format": "JPEG"}, "jpe": {"format": "JPEG"}}.get(ending, {})
    image.save(tmp_path / f"a.{ending}", **options)
    grey, _ = decode_grey(tmp_path / f"a.{ending}")
    expected = np.asarray(image.convert("RGB").convert("L")).astype(int)
    assert np.abs(np.asarray(grey) - expected).max() <= (40 if lossy else 1)


def test_exif_that_cannot_be_read_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(2).save(tmp_path / "a.png")
    monkeypatch.setattr(Image.Image, "getexif", MagicMock(side_effect=SyntaxError("not a TIFF file")))
    np.testing.assert_array_equal(np.asarray(decode_grey(tmp_path / "a.png")[0]), np.asarray(picture(2)))


def test_orientation_of_a_tiff_is_applied_once(tmp_path: Path) -> None:
    upright = np.asarray(picture(2))
    ways = {
        2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.T, 6: np.rot90(upright, -1),
        7: upright[::-1, ::-1].T, 8: np.rot90(upright),
    }  # fmt: skip
    for orientation, expected in ways.items():
        picture(2).save(tmp_path / "a.tif", tiffinfo={0x0112: orientation})
        np.testing.assert_array_equal(np.asarray(decode_grey(tmp_path / "a.tif")[0]), expected)


def test_tiffs_of_sixteen_bits_and_of_real_numbers(tmp_path: Path) -> None:
    values = np.asarray(picture(1)).astype(np.uint16) * 16
    grey = np.asarray(picture(1)).astype(int)
    for name, array in (("deep.tif", values), ("real.tif", values.astype(np.float32))):
        Image.fromarray(array).save(tmp_path / name)
        scaled = np.asarray(decode_grey(tmp_path / name)[0])
        assert np.abs(scaled - np.rint(grey * 255 / grey.max())).max() <= 1


def set_tag(path: Path, number: int, value: int) -> None:
    """Give a tag of a TIFF another value."""
    data = bytearray(path.read_bytes())
    for tag in range(int.from_bytes(data[8:10], "little")):
        at = 10 + 12 * tag
        if data[at : at + 2] == number.to_bytes(2, "little"):
            data[at + 8 : at + 10] = value.to_bytes(2, "little")
    path.write_bytes(data)


def test_images_that_are_not_read_safely_are_named(tmp_path: Path) -> None:
    grey = picture(1)
    grey.save(tmp_path / "pages.tif", save_all=True, append_images=[picture(2)])
    grey.save(tmp_path / "moves.webp", save_all=True, append_images=[picture(2)], lossless=True)
    grey.save(tmp_path / "packed.tif", compression="tiff_lzw")
    grey.save(tmp_path / "webp.jpg", "WEBP")
    grey.save(tmp_path / "bmp.png", "BMP")
    grey.save(tmp_path / "cut.bmp")
    (tmp_path / "cut.bmp").write_bytes((tmp_path / "cut.bmp").read_bytes()[:-9])
    deep = np.asarray(grey).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "white.tif")
    set_tag(tmp_path / "white.tif", 262, 0)
    Image.fromarray(np.where(deep > 0, np.nan, 1).astype(np.float32)).save(tmp_path / "nan.tif")
    for name, words in (
        ("pages.tif", "has several pages"), ("moves.webp", "is animated"),
        ("packed.tif", "with tiff_lzw compression, which is not supported. Save it as PNG"),
        ("webp.jpg", "but a WebP image. Rename it to end in .webp"), ("bmp.png", "but a BMP image"),
        ("cut.bmp", "is truncated"), ("white.tif", "with 0 as white"),
        ("nan.tif", "not finite"),
    ):  # fmt: skip
        refuse(tmp_path / name, (tmp_path / name).read_bytes(), words)


def test_damaged_images_print_nothing(tmp_path: Path) -> None:
    """In a process of its own, where no handler of log records stands in the way."""
    picture(1).save(tmp_path / "a.tif", tiffinfo={277: 9})
    set_tag(tmp_path / "a.tif", 277, 9)  # samples per pixel
    code = (
        "import sys; from pathlib import Path; from hpc_tumor.data.raw.files.image_files import decode_grey\n"
        "from hpc_tumor.errors import DataError\n"
        "try: decode_grey(Path(sys.argv[1]))\n"
        "except DataError: print('refused')"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "a.tif"], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("refused\n", "")


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
    refuse(tmp_path / "bomb.png", bomb, "pixels")


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
    """Return a mask of pixels without a colour clipped to 0 or 255, which have a defined grey."""
    with Image.open(path) as image:
        pixels = np.asarray(image)
    grey = (pixels == pixels[..., :1]).all(axis=-1)
    return grey | ((pixels > 0) & (pixels < 255)).all(axis=-1)


@pytest.mark.parametrize("share", [0.0, 0.37, 0.99, 1.0])
def test_percentile_of_a_histogram_is_numpys(share: float) -> None:
    for seed, count in ((0, 1), (1, 2), (2, 999)):
        values = np.random.default_rng(seed).integers(0, 256, count).astype(np.uint8)
        expected = np.percentile(values, 100 * share)
        assert percentile_of(np.bincount(values, minlength=256).tolist(), share) == pytest.approx(expected)


def test_sketch_gives_the_same_box_and_thumbnail() -> None:
    large = picture(6, (1000, 760))
    assert head_box(large) == head_box(large, reduced(large))
    np.testing.assert_array_equal(thumbnail(large), thumbnail(large, reduced(large)))
    exact = np.asarray(large.resize((32, 32), Image.Resampling.HAMMING)).astype(int)
    assert np.abs(exact - thumbnail(large)).mean() < 1
