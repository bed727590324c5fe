"""Folders of strangers: names and links that lead astray, pipes and devices, files not what they are called."""

from __future__ import annotations

import errno
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
from raw_samples import list_cases, picture, write_case, write_pictures

from hpc_tumor.data.convert.prepare import prepare_dataset
from hpc_tumor.data.raw.brain_mri import BrainMRIReader, decode_grey
from hpc_tumor.data.raw.brats import BraTSReader
from hpc_tumor.data.raw.files import listing as listing_module
from hpc_tumor.data.raw.files.listing import read_source, walk
from hpc_tumor.data.raw.files.nifti import open_nifti
from hpc_tumor.data.store.store import Store
from hpc_tumor.errors import DataError
from hpc_tumor.vocabulary import is_plain, printable

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
    bad, good = sorted(list_cases(BraTSReader(), tmp_path / "brats"), key=lambda case: case.id == "Good")
    refused(lambda: BraTSReader().read_case(bad), printable(name), "Rename it")
    assert BraTSReader().read_case(good).id == "Good"
    folder = write_pictures(tmp_path / "images", 1) / "Training" / "glioma"
    shutil.copy(next(folder.iterdir()), folder / f"{name}.png")
    cases = list_cases(BrainMRIReader(), tmp_path / "images")
    (odd,) = (case for case in cases if case.id.endswith(f"/{printable(name)}.png"))
    refused(lambda: BrainMRIReader().read_case(odd), printable(name), "Rename it")


@pytest.mark.parametrize("name", ODD)
def test_odd_names_in_what_refuses_a_whole_folder(tmp_path: Path, name: str) -> None:
    write_pictures(tmp_path / "images", 1)
    (tmp_path / "images" / "Training" / name).mkdir()
    picture(0).save(tmp_path / "images" / "Training" / name / "a.png")
    refused(lambda: list_cases(BrainMRIReader(), tmp_path / "images"), "unknown class")
    write_case(tmp_path / "one" / name)
    write_case(tmp_path / "two" / name)
    refused(lambda: list_cases(BraTSReader(), tmp_path), "two folders contain a case")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / f"a.{name}").touch()
    refused(lambda: list_cases(BrainMRIReader(), tmp_path / "other"), "contains no such dataset")


def test_a_source_given_as_dots_keeps_its_case_in_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`..` is no name: as a case's it would lead out of the folder of cases."""
    write_case(tmp_path / "raw" / "Patient")
    (tmp_path / "raw" / "Patient" / "inner").mkdir()
    monkeypatch.chdir(tmp_path / "raw" / "Patient" / "inner")
    for source in ("..", "../inner/..", "../../Patient/."):
        assert [case.id for case in list_cases(BraTSReader(), Path(source))] == ["Patient"]
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
        refused(lambda folder=tmp_path / one: list_cases(BraTSReader(), folder), "two folders contain a case")


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
        "up": "..", "circle.jpg": "circle.jpg", "left": "right", "right": "left", "here": ".", "gone.jpg": "no.jpg",
        "inside.jpg": "a.jpg", "returns.jpg": outside / "back.jpg",
    }.items():  # fmt: skip
        (source / name).symlink_to(target)
    (outside / "three.jpg").symlink_to("/etc/passwd")
    listing = walk(source)
    assert [file.relative for file in listing.files] == ["a.jpg", "inside.jpg", "returns.jpg"]
    led_out = {"file.jpg", "folder", "dots.jpg", "one.jpg", "two.jpg", "null.jpg", "zero.jpg"}
    to_nothing = {"circle.jpg", "left", "right", "gone.jpg"}
    assert {link.relative for link in listing.links} == led_out | to_nothing
    assert listing.upward == 2
    for link in listing.links:
        assert link.absent is not None
        assert ("outside the source" in link.absent.text) == (link.relative in led_out)


def test_a_source_that_is_a_link_is_taken_for_what_it_is(tmp_path: Path) -> None:
    write_case(tmp_path / "raw" / "Case")
    (tmp_path / "link").symlink_to("raw")
    assert [case.id for case in list_cases(BraTSReader(), tmp_path / "link")] == ["Case"]
    (tmp_path / "round").symlink_to("round")
    refused(lambda: walk(tmp_path / "round"), str(tmp_path / "round"))


def test_pipes_sockets_and_folders_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a_flair.nii")
    (tmp_path / "b_flair.nii").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "c.jpg"))
        assert listed(tmp_path) == []
    refused(lambda: list_cases(BraTSReader(), tmp_path), "contains no such dataset")
    # What was a file when it was listed may be something else when it is read: a pipe would be waited for for ever.
    for name in ("a_flair.nii", "b_flair.nii"):
        refused(lambda path=tmp_path / name: read_source(path), str(tmp_path / name))
        refused(lambda path=tmp_path / name: open_nifti(path).read(), str(tmp_path / name))
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

    monkeypatch.setattr(listing_module.os, "scandir", lambda _: [Entry()])
    assert walk(tmp_path).files == []
    Entry.error = errno.ESTALE
    refused(lambda: walk(tmp_path), "a.jpg cannot be read")
