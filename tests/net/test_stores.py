"""A store of each kind, file by file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import zarr
from recording import compare, digest, mask, plain, same_versions

KINDS = ("brats", "brats-h5", "brain-mri")


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_store_holds(base: Path, kind: str) -> None:
    """Metadata as text, and the values of arrays by their digest, whatever library compresses them."""
    store = base / f"{kind}.zarr"
    shown = []
    for path in sorted(store.rglob("zarr.json")):
        name = str(path.relative_to(store))
        values = json.loads(path.read_text())
        text = mask(plain(values), {str(base): "BASE"})
        if name.startswith("cases/") and not name.startswith(("cases/zarr.json", f"cases/{_first_case(store)}/")):
            text = f"<text, sha256 {digest(text.encode())}>"
        shown.append(f"{name}\n{text}")
        if values["node_type"] == "array":
            array = np.ascontiguousarray(zarr.open_array(path.parent, mode="r")[...])
            shown.append(f"{array.dtype} {array.shape}, sha256 {digest(array.tobytes())}")
    compare(f"stores/{kind}.txt", "\n\n".join(shown))


@pytest.mark.parametrize("kind", KINDS)
def test_every_byte_of_a_store(base: Path, kind: str) -> None:
    """The digest of each file."""
    if not same_versions():
        pytest.skip("other versions of libraries than on record: they may compress otherwise")
    store = base / f"{kind}.zarr"
    files = sorted(path for path in store.rglob("*") if path.is_file())
    lines = [f"{digest(path.read_bytes())}  {path.relative_to(store)}" for path in files]
    compare(f"stores/{kind}.sha256", "\n".join(lines))


def _first_case(store: Path) -> str:
    return min((path.name for path in (store / "cases").iterdir() if path.is_dir()), default="")
