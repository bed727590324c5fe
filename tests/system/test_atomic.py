"""Where a run cannot be written, and the reason given."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from hpc_tumor.errors import HpcTumorError, UsageError
from hpc_tumor.system.atomic import check_writable, write_error


@pytest.mark.parametrize(
    ("name", "words"),
    [("file/runs", "not a folder"), ("closed/runs", "permission denied"), ("x" * 300, "File name too long")],
)
def test_a_folder_that_cannot_take_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, words: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "closed").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path / "closed")  # root may write anywhere
    check_writable(tmp_path / "new" / "runs")
    with pytest.raises(UsageError, match=words):
        check_writable(tmp_path / name)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [(errno.ENOSPC, HpcTumorError, "the disk is full"), (errno.EROFS, UsageError, "read-only"),
     (errno.EPERM, UsageError, "permission denied"), (errno.EIO, UsageError, "Input/output error")],
)  # fmt: skip
def test_reasons(number: int, kind: type[HpcTumorError], words: str) -> None:
    error = write_error(OSError(number, os.strerror(number)), Path("/runs"), "a run")
    assert type(error) is kind
    assert str(error).startswith("a run c")
    assert words in str(error)
