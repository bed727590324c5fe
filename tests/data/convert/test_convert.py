"""Output of a worker: every voxel, the affine and the header as in the source, and a digest of the content."""

from __future__ import annotations

import base64
import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import zarr
from raw_samples import LPS, brain, list_cases, real_data, save, tumour, write_case

from hpc_tumor.data.brain import brain_statistics
from hpc_tumor.data.convert.case import Row, Unit, convert_unit, pack_images, unpack_images
from hpc_tumor.data.raw.brats import BraTSReader
from hpc_tumor.data.store.nodes import IMAGE_COMPRESSION
from hpc_tumor.data.store.shards import pack_chunk

READER = BraTSReader()


def convert(source: Path, store: Path, reader: BraTSReader = READER) -> Row:
    """Convert the only case below `source` into the folder `store`; gives its row."""
    (case,) = list_cases(reader, source)
    result = convert_unit(Unit(reader, [case], store, 1))
    assert not result.failed
    return result.rows[0]


@pytest.mark.slow
def test_every_voxel_of_real_patients_comes_back(tmp_path: Path) -> None:
    """Read with nibabel from the source and with zarr-python from the store, neither of which is used to convert."""
    for case in list_cases(READER, real_data("brats")):
        (row,) = convert_unit(Unit(READER, [case], tmp_path / case.id, 1)).rows
        group = zarr.open_group(tmp_path / case.id, mode="r")
        stored, first = np.asarray(group["0"]), nib.load(case.files["FLAIR"].path)
        for channel, role in zip(stored, ("FLAIR", "T1", "T1ce", "T2"), strict=True):
            source = nib.load(case.files[role].path)
            assert stored.dtype == source.get_data_dtype()
            np.testing.assert_array_equal(channel, np.asarray(source.dataobj).T)
        labels = np.asarray(nib.load(case.files["label"].path).dataobj).T
        np.testing.assert_array_equal(np.asarray(group["labels/seg/0"]), np.where(labels == 4, 3, labels))
        np.testing.assert_array_equal(row["affine"], first.affine)
        with gzip.open(case.files["FLAIR"].path) as file:
            assert base64.b64decode(row["header"]) == file.read(348)
        held = sum(file.stat().st_size for file in (tmp_path / case.id).rglob("*") if file.is_file())
        assert held <= case.bytes
        assert len([file for file in (tmp_path / case.id).rglob("*") if file.is_file()]) <= 10


@pytest.mark.parametrize("dtype", ["int16", "uint8", "int32", "float32", "float64"])
def test_types_are_kept(tmp_path: Path, dtype: str) -> None:
    folder = write_case(tmp_path / "raw" / "case", dtype=dtype)
    row = convert(tmp_path / "raw", tmp_path / "store")
    assert row["dtype"] == dtype
    stored = np.asarray(zarr.open_group(tmp_path / "store", mode="r")["0"])
    np.testing.assert_array_equal(stored[1], np.asarray(nib.load(folder / "case_t1.nii.gz").dataobj).T)


def test_big_endian_and_a_slope(tmp_path: Path) -> None:
    folder = write_case(tmp_path / "raw" / "case")
    image = nib.Nifti1Image(brain(1).astype(">i2"), LPS, nib.Nifti1Header(endianness=">"))
    nib.save(image, folder / "case_t1.nii.gz")
    raw = bytearray(save(folder / "case_t2.nii", brain(2)).read_bytes())
    raw[112:120] = np.array([0.5, -3], "<f4").tobytes()  # scl_slope, scl_inter
    (folder / "case_t2.nii").write_bytes(raw)
    (folder / "case_t2.nii.gz").unlink()
    assert convert(tmp_path / "raw", tmp_path / "store")["dtype"] == "float32"
    stored = np.asarray(zarr.open_group(tmp_path / "store", mode="r")["0"])
    np.testing.assert_array_equal(stored[1], brain(1).T)
    np.testing.assert_array_equal(stored[3], (brain(2).T * 0.5 - 3).astype(np.float32))


def content(root: Path, name: str, reader: BraTSReader = READER, **how: object) -> str:
    """Digest of a case written with `how`."""
    write_case(root / name / "raw" / "case", **how)
    return convert(root / name / "raw", root / name / "store", reader)["content"]


def test_content_is_the_same_however_it_is_packed(tmp_path: Path) -> None:
    packed = content(tmp_path, "a")
    assert packed == content(tmp_path, "b", ending=".nii")
    assert packed == content(tmp_path, "c", BraTSReader("brats-2023"), labels=tumour(enhancing=3))


def test_content_differs_with_any_voxel_label_type_or_place(tmp_path: Path) -> None:
    digests = {content(tmp_path, "a"), content(tmp_path, "b", dtype="int32"), content(tmp_path, "c", seed=1)}
    moved = LPS.copy()
    moved[0, 3] = 1
    digests.add(content(tmp_path, "d", affine=moved))
    labels = tumour()
    labels[-1, -1, -1] = 2  # outside the brain
    digests.add(content(tmp_path, "e", labels=labels))
    assert len(digests) == 5


@pytest.mark.parametrize("place", [(2, 3, 4, 5), (0, 0, 0, 0), (3, 5, 9, 11)])
def test_digest_notices_one_voxel(place: tuple[int, ...]) -> None:
    image = np.stack([brain(i).T for i in range(4)])
    before = brain_statistics(image).digest
    assert brain_statistics(image.copy()).digest == before
    image[place] += 1
    assert brain_statistics(image).digest != before


def test_digest_tells_a_shifted_brain_apart() -> None:
    """The same brain voxels in the same order, elsewhere."""
    image = np.stack([brain(i).T for i in range(4)])
    shifted = [np.roll(image, 1, axis) for axis in (1, 2, 3)]
    assert len({brain_statistics(each).digest for each in (image, *shifted)}) == 4


def test_background_of_each_slice() -> None:
    """Statistics with a background per slice are those over the voxels that differ from it."""
    draw = np.random.default_rng(0)
    outside = draw.normal(0, 1, (4, 6))
    image = np.repeat(outside[:, :, None], 80, axis=2).reshape(4, 6, 8, 10)
    image[:, 1:5, 2:6, 3:7] = draw.normal(5, 2, (4, 4, 4, 4))
    result = brain_statistics(image, outside)
    mask = (image != outside[:, :, None, None]).any(axis=0)
    assert result.voxels == mask.sum() == 64
    np.testing.assert_allclose(result.moments[:, 0], image[:, mask].mean(axis=1))
    np.testing.assert_allclose(result.moments[:, 1], image[:, mask].std(axis=1))
    np.testing.assert_array_equal(result.extent, np.stack([image.min(axis=(1, 2, 3)), image.max(axis=(1, 2, 3))], 1))


def test_images_are_packed_and_unpacked(tmp_path: Path) -> None:
    rows = [{"case": "a (1).jpg", "size": [3, 4]}, {"case": "ü.png", "size": [5, 6]}]
    chunks = [pack_chunk(np.full((4, 4), value, np.uint8), IMAGE_COMPRESSION) for value in (7, 9)]
    masks = [b"", pack_chunk(np.ones((4, 4), np.uint8), IMAGE_COMPRESSION)]  # only the second has one
    data, file = pack_images(rows, chunks, masks), tmp_path / "x.images"
    file.write_bytes(data)
    assert unpack_images(file) == (rows, chunks, masks)
    for place in range(len(data)):  # a byte that the disk gives back otherwise, anywhere
        file.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        with pytest.raises(ValueError, match=r"damaged|Expecting|codec|Extra"):
            unpack_images(file)
    for length in range(len(data)):
        file.write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"damaged|Expecting|codec|Extra"):
            unpack_images(file)
