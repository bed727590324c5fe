"""Untrusted files: each bug found by the fuzzer or in review, by name; and the whole conversion."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import fuzzing_images
import nibabel as nib
import numpy as np
import pytest
from fuzzing_images import hollow_png, png_chunks, png_joined
from raw_samples import brain, list_cases, picture, save, tree, write_case, write_patients, write_pictures
from test_hostile_names import ODD, refused

from hpc_tumor.data.brain import brain_statistics
from hpc_tumor.data.raw.brain_mri import decode_grey
from hpc_tumor.data.raw.brats import BraTSReader
from hpc_tumor.data.raw.files import listing as listing_module
from hpc_tumor.data.raw.files.listing import MOST_BYTES, read_source
from hpc_tumor.data.raw.files.nifti import MOST_VOXELS, open_nifti
from hpc_tumor.data.store.ome import image_metadata
from hpc_tumor.data.store.store import Store
from hpc_tumor.errors import DataError
from hpc_tumor.vocabulary import is_plain, printable


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

    monkeypatch.setattr(listing_module.os, "fstat", fstat)
    refused(lambda: read_source(path), "changed while it was read")


def test_sparse_files_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.nii"
    with path.open("wb") as file:
        file.truncate(10**12)
    refused(lambda: open_nifti(path).read(), "1,000,000,000,000 bytes; the limit is", f"{MOST_BYTES:,}")
    refused(lambda: decode_grey(path), "the limit is")


def test_packed_or_not_whatever_the_name_says(tmp_path: Path) -> None:
    plain = save(tmp_path / "a.nii", brain(0)).read_bytes()
    (tmp_path / "plain.nii.gz").write_bytes(plain)
    (tmp_path / "packed.nii").write_bytes(gzip.compress(plain))
    for name in ("plain.nii.gz", "packed.nii"):
        np.testing.assert_array_equal(open_nifti(tmp_path / name).read().T, brain(0))


@pytest.mark.parametrize(("damage", "words"), [("end", "gzip stream ends early"), ("sum", "not a valid gzip file")])
def test_packed_files_whose_voxels_are_all_there(tmp_path: Path, damage: str, words: str) -> None:
    """Of their checksum, a part is gone, or a bit is another."""
    packed = bytearray(gzip.compress(save(tmp_path / "a.nii", brain(0)).read_bytes()))
    packed[-8] ^= 1
    (tmp_path / "b.nii.gz").write_bytes(packed if damage == "sum" else packed[:-6])
    with pytest.raises(DataError, match=words):
        open_nifti(tmp_path / "b.nii.gz").read()


def lying(tmp_path: Path, dtype: str = "int16", **fields: Any) -> Path:
    """A NIfTI file with other values in some fields of its header."""
    data = save(tmp_path / "a.nii", brain(0, dtype)).read_bytes()
    header = np.frombuffer(data[:348], nib.Nifti1Header.template_dtype).copy()
    for name, value in fields.items():
        header[name] = value
    path = tmp_path / "lying.nii"
    path.write_bytes(header.tobytes() + data[348:])
    return path


def test_unknown_data_type_is_named(tmp_path: Path) -> None:
    refused(lambda: open_nifti(lying(tmp_path, datatype=32767)).read(), "lying.nii has the unknown data type 32767")


def test_more_voxels_than_any_scan_has(tmp_path: Path) -> None:
    path = lying(tmp_path, dim=[3, 10_000, 10_000, 10_000, 1, 1, 1, 1])
    refused(lambda: open_nifti(path).read(), "10000 × 10000 × 10000 voxels", "more than the file")
    path = lying(tmp_path, dim=[3, 513, 512, 512, 1, 1, 1, 1])
    # Of so many bytes, the best packed could hold them.
    path.write_bytes(gzip.compress(path.read_bytes() + np.random.default_rng(0).bytes(300_000)))
    refused(lambda: open_nifti(path).read(), "513 × 512 × 512 voxels; the limit is", f"{MOST_VOXELS:,}")


@pytest.mark.filterwarnings("error")
def test_voxels_without_end(tmp_path: Path) -> None:
    """Reading them with nibabel would also print warnings to the terminal."""
    for size in (np.inf, np.nan, 0, 1e-12, 1e30):
        path = lying(tmp_path, pixdim=[1, size, 1, 1, 1, 1, 1, 1])
        refused(lambda path=path: open_nifti(path).read(), str(path), "no valid affine")


@pytest.mark.filterwarnings("error")
def test_slopes_that_overflow(tmp_path: Path) -> None:
    path = lying(tmp_path, scl_slope=3e38)
    assert not np.isfinite(open_nifti(path).read()).all()
    write_case(tmp_path / "raw" / "Case")
    (case,) = list_cases(BraTSReader(), tmp_path / "raw")
    for slope, words in ((3e38, "not finite"), (1e30, "the limit is 1e+18")):
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
    refused(lambda: decode_grey(path), "a.png has", "pixels")
    path.write_bytes(fuzzing_images.sized(fuzzing_images.jpeg_samples()[0], *(min(n, 65_500) for n in size)))
    refused(lambda: decode_grey(path), "a.png has", "pixels")


def test_jpeg_that_goes_over_its_pixels_a_thousand_times(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(fuzzing_images.many_scans(8000, 4000, 5000))
    assert path.stat().st_size < 200_000
    refused(lambda: decode_grey(path), "a.jpg is a JPEG with too many scans")
    path.write_bytes(fuzzing_images.many_scans(640, 480, 5))
    assert decode_grey(path)[0].size == (640, 480)


def prepare_data(*arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "hpc_tumor", "prepare-data", *arguments],
        env={**os.environ, **environment}, capture_output=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.mark.slow
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
    assert "Unexpected error" not in said
    assert all(is_plain(line) for line in said.split("\n")), said
    warnings = [line for line in said.splitlines() if line.startswith("warning:")]
    assert len(warnings) == len(bad) + 3, said
    for name in [*map(printable, bad), "pipe", "link", "bomb"]:
        assert sum(f"/{name}" in line for line in warnings) == 1, (name, said)
    assert {case for case, _ in json.loads(done.stdout)["failed"]} == {*map(printable, bad), "pipe", "link", "bomb"}
    assert Store.open(tmp_path / "s.zarr").case_ids == ["BraTS20_Training_001", "BraTS20_Training_002"]


@pytest.mark.slow
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
    assert "Unexpected error" not in said
    assert all(is_plain(line) for line in said.split("\n")), said
    summary = json.loads(done.stdout)
    assert summary["cases"] + len(summary["failed"]) == 8 + len(mutants) + len(ODD)
    assert all(str(source) in reason for _, reason in summary["failed"])
    store = Store.open(tmp_path / "s.zarr")
    assert len(store.read_images(range(len(store))).result()) == summary["cases"]
    assert not [name for name in tree(tmp_path) if "old-" in name]
