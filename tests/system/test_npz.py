"""Archives of arrays that somebody else may have written."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hpc_tumor.system.npz import read_arrays, write_arrays

MOST = 1 << 20


def test_round_trip(tmp_path: Path) -> None:
    write_arrays(tmp_path / "a.npz", {"n": 1}, {"values": np.asfortranarray(np.arange(6.0).reshape(2, 3))})
    about, arrays = read_arrays(tmp_path / "a.npz", MOST, MOST)
    assert about == {"n": 1}
    np.testing.assert_array_equal(arrays["values"], np.arange(6.0).reshape(2, 3))


def many(path: Path) -> None:
    write_arrays(path, {}, {f"a{number}": np.zeros(1) for number in range(65)})


def large(path: Path) -> None:
    write_arrays(path, {}, {"a": np.zeros(MOST)})


def listed(path: Path) -> None:
    np.savez_compressed(path, about=np.array("[]"))


def other_version(path: Path) -> None:
    data = io.BytesIO()
    np.lib.format.write_array(data, np.zeros(1), version=(3, 0))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", data.getvalue())


def packed(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("a.npy", b"")


@pytest.mark.parametrize(
    ("make", "words"),
    [(many, "too much data"), (large, "too much data"), (listed, "no description"), (other_version, "unknown version"),
     (packed, "unknown compression"), (Path.mkdir, "not a file"), (Path.touch, "damaged")],
)  # fmt: skip
def test_other_archives_are_refused(tmp_path: Path, make: Callable[[Path], None], words: str) -> None:
    make(tmp_path / "a.npz")
    with pytest.raises(ValueError, match=words):
        read_arrays(tmp_path / "a.npz", MOST, MOST)
