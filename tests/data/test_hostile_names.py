"""Folders of strangers: names and links that lead astray, pipes and devices, files not what they are called."""

from __future__ import annotations

import errno
import gzip
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import fuzzing_images
import numpy as np
import pytest
from fuzzing_images import hollow_png, png_chunks, png_joined
from raw_samples import brain, picture, save, tree, write_case, write_patients, write_pictures

from hpc_tumor.data import case as case_module
from hpc_tumor.data.brain import brain_statistics
from hpc_tumor.data.brain_mri import BrainMRIReader, decode_grey
from hpc_tumor.data.brats import BraTSReader
from hpc_tumor.data.case import MOST_BYTES, read_source, walk
from hpc_tumor.data.nifti import MOST_VOXELS, read_nifti
from hpc_tumor.data.ome import image_metadata
from hpc_tumor.data.prepare import prepare_dataset
from hpc_tumor.data.store import Store
from hpc_tumor.errors import DataError
from hpc_tumor.names import is_plain, printable

ODD = ("\x1b[31mred", "two\nlines", "bell\x07", "c1\x9b31m", "turned\u202egpj", "tab\there", os.fsdecode(b"latin-\xe9"))


def listed(folder: Path) -> list[str]:
    return [file.relative for file in walk(folder).files]


def refused(call: Any, *words: str) -> str:
    with pytest.raises(DataError) as caught:
        call()
    text = str(caught.value)
    assert is_plain(text), repr(text)
    for word in words:
        assert word in text
    return text


# -- names -------------------------------------------------------------------------------------------------------------


def test_printable() -> None:
    assert printable("a\x1b[1m\n\x9b\u202e" + os.fsdecode(b"\xff")) == r"a\x1b[1m\x0a\x9b\u202e\xff"
    for name in ("image (1).jpg", "Screenshot 10.00\u202fAM.png", "é 中文 👩‍⚕️", r"back\slash"):
        assert printable(name) == name
        assert is_plain(name)


@pytest.mark.parametrize("name", ODD)
def test_odd_names_refuse_their_case_and_no_other(tmp_path: Path, name: str) -> None:
    write_case(tmp_path / "brats" / "Good")
    write_case(tmp_path / "brats" / name, seed=1)
    bad, good = sorted(BraTSReader().list_cases(tmp_path / "brats"), key=lambda case: case.id == "Good")
    refused(lambda: BraTSReader().read_case(bad), printable(name), "Rename it")
    assert BraTSReader().read_case(good).id == "Good"
    folder = write_pictures(tmp_path / "images", 1) / "Training" / "glioma"
    shutil.copy(next(folder.iterdir()), folder / f"{name}.png")
    cases = BrainMRIReader().list_cases(tmp_path / "images")
    (odd,) = (case for case in cases if case.id.endswith(f"/{printable(name)}.png"))
    refused(lambda: BrainMRIReader().read_case(odd), printable(name), "Rename it")


@pytest.mark.parametrize("name", ODD)
def test_odd_names_in_what_refuses_a_whole_folder(tmp_path: Path, name: str) -> None:
    write_pictures(tmp_path / "images", 1)
    (tmp_path / "images" / "Training" / name).mkdir()
    picture(0).save(tmp_path / "images" / "Training" / name / "a.png")
    refused(lambda: BrainMRIReader().list_cases(tmp_path / "images"), "unknown class")
    write_case(tmp_path / "one" / name)
    write_case(tmp_path / "two" / name)
    refused(lambda: BraTSReader().list_cases(tmp_path), "two folders hold a case")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / f"a.{name}").touch()
    refused(lambda: BrainMRIReader().list_cases(tmp_path / "other"), "holds no such dataset")


def test_a_source_given_as_dots_keeps_its_case_in_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`..` is no name: as a case's it would lead out of the folder of cases."""
    write_case(tmp_path / "raw" / "Patient")
    (tmp_path / "raw" / "Patient" / "inner").mkdir()
    monkeypatch.chdir(tmp_path / "raw" / "Patient" / "inner")
    for source in ("..", "../inner/..", "../../Patient/."):
        assert [case.id for case in BraTSReader().list_cases(Path(source))] == ["Patient"]
    prepare_dataset(BraTSReader(), Path(".."), tmp_path / "s.zarr", workers=1)
    assert Store.open(tmp_path / "s.zarr").case_ids == ["Patient"]
    assert (tmp_path / "s.zarr" / "cases" / "Patient" / "zarr.json").is_file()


@pytest.mark.parametrize("name", ["zarr.json", "__case"])
def test_names_that_zarr_keeps_for_itself(tmp_path: Path, name: str) -> None:
    write_case(tmp_path / "raw" / name)
    write_case(tmp_path / "raw" / "Good")
    summary = prepare_dataset(BraTSReader(), tmp_path / "raw", tmp_path / "s.zarr", workers=1)
    assert [case for case, _ in summary.failed] == [name]
    assert Store.open(tmp_path / "s.zarr").case_ids == ["Good"]


def test_names_that_are_one_on_some_disks(tmp_path: Path) -> None:
    for one, other in (("Case", "CASE"), ("caf\u00e9", "cafe\u0301")):
        write_case(tmp_path / one / one)
        write_case(tmp_path / one / other)
        refused(lambda folder=tmp_path / one: BraTSReader().list_cases(folder), "two folders hold a case")


def test_long_names(tmp_path: Path) -> None:
    refused(lambda: walk(tmp_path / ("x" * 5000)), "cannot be read")
    refused(lambda: walk(Path("a\0b")), "cannot be read")
    write_case(tmp_path / "raw" / ("x" * 240))
    summary = prepare_dataset(BraTSReader(), tmp_path / "raw", tmp_path / "s.zarr", workers=1)
    assert summary.cases == 1


# -- links and special files -------------------------------------------------------------------------------------------


def test_links_that_lead_out_or_in_circles(tmp_path: Path) -> None:
    source, outside = tmp_path / "source", tmp_path / "outside"
    source.mkdir()
    outside.mkdir()
    (outside / "secret.jpg").write_bytes(b"secret")
    (source / "a.jpg").write_bytes(b"own")
    (outside / "back.jpg").symlink_to(source / "a.jpg")
    for name, target in {
        "file.jpg": outside / "secret.jpg", "folder": outside, "dots.jpg": "../outside/secret.jpg",
        "one.jpg": "two.jpg", "two.jpg": outside / "three.jpg", "null.jpg": "/dev/null", "zero.jpg": "/dev/zero",
        "up": "..", "circle.jpg": "circle.jpg", "left": "right", "right": "left", "here": ".", "gone.jpg": "nothing.jpg",
        "inside.jpg": "a.jpg", "returns.jpg": outside / "back.jpg",
    }.items():  # fmt: skip
        (source / name).symlink_to(target)
    (outside / "three.jpg").symlink_to("/etc/passwd")
    listing = walk(source)
    assert [file.relative for file in listing.files] == ["a.jpg", "inside.jpg", "returns.jpg"]
    led_out = {"file.jpg", "folder", "dots.jpg", "one.jpg", "two.jpg", "null.jpg", "zero.jpg", "up"}
    assert set(listing.links_out) == led_out


def test_a_source_that_is_a_link_is_taken_for_what_it_is(tmp_path: Path) -> None:
    write_case(tmp_path / "raw" / "Case")
    (tmp_path / "link").symlink_to("raw")
    assert [case.id for case in BraTSReader().list_cases(tmp_path / "link")] == ["Case"]
    (tmp_path / "round").symlink_to("round")
    refused(lambda: walk(tmp_path / "round"), str(tmp_path / "round"))


def test_pipes_sockets_and_folders_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a_flair.nii")
    (tmp_path / "b_flair.nii").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "c.jpg"))
        assert listed(tmp_path) == []
    refused(lambda: BraTSReader().list_cases(tmp_path), "holds no such dataset")
    # What was a file when it was listed may be something else when it is read: a pipe would be waited for for ever.
    for name in ("a_flair.nii", "b_flair.nii"):
        refused(lambda path=tmp_path / name: read_source(path), str(tmp_path / name))
        refused(lambda path=tmp_path / name: read_nifti(path), str(tmp_path / name))
        refused(lambda path=tmp_path / name: decode_grey(path), str(tmp_path / name))


def test_files_that_vanish_while_the_folder_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Entry:
        name = path = "a.jpg"
        error = errno.ENOENT

        def is_symlink(self) -> bool:
            return False

        def is_dir(self) -> bool:
            return False

        def is_file(self) -> bool:
            return True

        def stat(self) -> os.stat_result:
            raise OSError(self.error, os.strerror(self.error))

    monkeypatch.setattr(case_module.os, "scandir", lambda _: [Entry()])
    assert walk(tmp_path).files == []
    Entry.error = errno.ESTALE
    refused(lambda: walk(tmp_path), "a.jpg cannot be looked at")


def test_files_that_grow_while_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.nii"
    path.write_bytes(bytes(1000))
    real, calls = os.fstat, []

    def fstat(handle: int) -> os.stat_result:
        if calls:
            with path.open("ab") as file:
                file.write(b"more")
        calls.append(handle)
        return real(handle)

    monkeypatch.setattr(case_module.os, "fstat", fstat)
    refused(lambda: read_source(path), "changed while it was read")


def test_sparse_files_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.nii"
    with path.open("wb") as file:
        file.truncate(10**12)
    refused(lambda: read_nifti(path), "1,000,000,000,000 bytes: refused", f"{MOST_BYTES:,}")
    refused(lambda: decode_grey(path), "refused")


# -- what files hold ---------------------------------------------------------------------------------------------------


def test_packed_or_not_whatever_the_name_says(tmp_path: Path) -> None:
    plain = save(tmp_path / "a.nii", brain(0)).read_bytes()
    (tmp_path / "plain.nii.gz").write_bytes(plain)
    (tmp_path / "packed.nii").write_bytes(gzip.compress(plain))
    for name in ("plain.nii.gz", "packed.nii"):
        np.testing.assert_array_equal(read_nifti(tmp_path / name).array.T, brain(0))


def lying(tmp_path: Path, dtype: str = "int16", **fields: Any) -> Path:
    """A NIfTI file with other values in some fields of its header."""
    import nibabel as nib

    data = save(tmp_path / "a.nii", brain(0, dtype)).read_bytes()
    header = np.frombuffer(data[:348], nib.Nifti1Header.template_dtype).copy()
    for name, value in fields.items():
        header[name] = value
    path = tmp_path / "lying.nii"
    path.write_bytes(header.tobytes() + data[348:])
    return path


def test_unknown_data_type_is_named(tmp_path: Path) -> None:
    refused(lambda: read_nifti(lying(tmp_path, datatype=32767)), "lying.nii has the unknown data type 32767")


def test_more_voxels_than_any_scan_has(tmp_path: Path) -> None:
    path = lying(tmp_path, dim=[3, 10_000, 10_000, 10_000, 1, 1, 1, 1])
    refused(lambda: read_nifti(path), "10000 × 10000 × 10000 voxels: refused", f"{MOST_VOXELS:,}")


@pytest.mark.filterwarnings("error")
def test_voxels_without_end(tmp_path: Path) -> None:
    """What nibabel makes of them would also write warnings to the terminal."""
    for size in (np.inf, np.nan, 0):
        path = lying(tmp_path, pixdim=[1, size, 1, 1, 1, 1, 1, 1])
        refused(lambda path=path: read_nifti(path), str(path), "no usable affine")


@pytest.mark.filterwarnings("error")
def test_slopes_that_overflow(tmp_path: Path) -> None:
    path = lying(tmp_path, scl_slope=3e38)
    assert not np.isfinite(read_nifti(path).array).all()
    write_case(tmp_path / "raw" / "Case")
    (case,) = BraTSReader().list_cases(tmp_path / "raw")
    for slope, words in ((3e38, "not finite"), (1e30, "refused, over 1e+18")):
        case.files["T1"].path.write_bytes(lying(tmp_path, scl_slope=slope).read_bytes())
        refused(lambda: BraTSReader().read_case(case), str(case.files["T1"].path), words)


def test_window_of_a_volume_of_one_large_value() -> None:
    brain = brain_statistics(np.full((4, 2, 3, 3), 1e18))
    for channel in image_metadata("x", (1, 1, 1), brain)["omero"]["channels"]:
        window = channel["window"]
        assert window["min"] <= window["start"] < window["end"] <= window["max"]


def test_damaged_pixels_of_a_png_are_noticed(tmp_path: Path) -> None:
    """Pillow skips the checksums of pixels: a stored block of deflate with a flipped bit reads as another picture."""
    path = tmp_path / "a.png"
    picture(0).save(path, compress_level=0)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    refused(lambda: decode_grey(path), "a.png is damaged or truncated: a checksum")
    chunks = png_chunks(fuzzing_images.png_samples()[0])
    path.write_bytes(png_joined([*chunks[:-1], (b"tEXt", b"a\0b"), chunks[-1]])[:-16] + b"\0" * 16)
    assert decode_grey(path)[1] == "L"  # of what says nothing of pixels, the checksum may be wrong


@pytest.mark.parametrize("size", [(100_000, 100_000), (6000, 6000), (1, 20_000), (20_000, 400)])
def test_images_too_large_or_too_long(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(hollow_png(*size))
    refused(lambda: decode_grey(path), "a.png claims", "pixels")
    path.write_bytes(fuzzing_images._sized(fuzzing_images.jpeg_samples()[0], *(min(n, 65_500) for n in size)))
    refused(lambda: decode_grey(path), "a.png claims", "pixels")


def test_jpeg_that_goes_over_its_pixels_a_thousand_times(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(fuzzing_images.many_scans(8000, 4000, 5000))
    assert path.stat().st_size < 200_000
    refused(lambda: decode_grey(path), "a.jpg goes over its pixels in too many scans")
    path.write_bytes(fuzzing_images.many_scans(640, 480, 5))
    assert decode_grey(path)[0].size == (640, 480)


# -- the whole road ----------------------------------------------------------------------------------------------------


def prepare_data(*arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "hpc_tumor", "prepare-data", *arguments],
        env={**os.environ, **environment}, capture_output=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("locale", ["C.UTF-8", "C"])
def test_a_folder_of_hostile_patients(tmp_path: Path, locale: str) -> None:
    source = write_patients(tmp_path / "raw", 2)
    bad = [*ODD, "__zarr"]
    for i, name in enumerate(bad):
        write_case(source / name, seed=i)
    for name in ("pipe", "link", "bomb"):
        write_case(source / name)
        (source / name / f"{name}_t1.nii.gz").unlink()
    os.mkfifo(source / "pipe" / "pipe_t1.nii.gz")
    (source / "link" / "link_t1.nii.gz").symlink_to("/dev/zero")
    (source / "bomb" / "bomb_t1.nii.gz").write_bytes(gzip.compress(lying(tmp_path).read_bytes() + bytes(1 << 26)))
    done = prepare_data(str(source), str(tmp_path / "s.zarr"), "--json", LC_ALL=locale, LANG=locale)
    said = done.stderr.decode("utf-8", "surrogateescape")
    assert done.returncode == 3, said
    assert "Traceback" not in said
    assert "not foreseen" not in said
    assert all(is_plain(line) for line in said.split("\n")), said
    warnings = [line for line in said.splitlines() if line.startswith("warning:")]
    assert len(warnings) == len(bad) + 3, said
    for name in [*map(printable, bad), "pipe", "link", "bomb"]:
        assert sum(f"/{name}" in line for line in warnings) == 1, (name, said)
    assert {case for case, _ in json.loads(done.stdout)["failed"]} == {*map(printable, bad), "pipe", "link", "bomb"}
    assert Store.open(tmp_path / "s.zarr").case_ids == ["BraTS20_Training_001", "BraTS20_Training_002"]


def test_a_folder_of_hostile_images(tmp_path: Path) -> None:
    source = write_pictures(tmp_path / "raw", 1)
    folder = source / "Training" / "glioma"
    mutants = list(fuzzing_images.jpeg(1, 20))[:40] + list(fuzzing_images.png(1, 20))[:40]
    for i, (_, data) in enumerate(mutants):
        (folder / f"-{i}.jpg").write_bytes(data)
    for name in ODD:
        picture(0).save(folder / f"{name}.png")
    done = prepare_data(str(source), str(tmp_path / "s.zarr"), "--json", "--workers", "2")
    said = done.stderr.decode("utf-8", "surrogateescape")
    assert done.returncode == 3, said
    assert "Traceback" not in said
    assert "not foreseen" not in said
    assert all(is_plain(line) for line in said.split("\n")), said
    summary = json.loads(done.stdout)
    assert summary["cases"] + len(summary["failed"]) == 8 + len(mutants) + len(ODD)
    assert all(str(source) in reason for _, reason in summary["failed"])
    store = Store.open(tmp_path / "s.zarr")
    assert len(store.read_images(range(len(store))).result()) == summary["cases"]
    assert not [name for name in tree(tmp_path) if "old-" in name]
