"""Stores as earlier versions wrote them."""

from __future__ import annotations

import shutil
from pathlib import Path

from hpc_tumor.data.store.nodes import group_json, read_attributes
from hpc_tumor.data.store.store import SINCE_2


def make_schema_1(store: Path) -> None:
    """Turn a store of images into one of the first schema, without patients."""
    index = store / "index"
    (index / "copies").rename(index / "group")
    for name in SINCE_2:
        shutil.rmtree(index / name, ignore_errors=True)
    attributes = {name: values for name, values in (read_attributes(index) or {}).items() if name not in SINCE_2}
    (index / "zarr.json").write_bytes(group_json(attributes))
    about = (read_attributes(store) or {})["hpc_tumor"]
    options = {**about["options"], "near_duplicates": "by the frame"}
    about |= {"schema": 1, "fingerprint": "1" * 64, "options": options}
    (store / "zarr.json").write_bytes(group_json({"hpc_tumor": about}))
