"""The run directory of each network, after a moment of training: files, keys, types, shapes and settings."""

from __future__ import annotations

import csv
import json
import re
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recording import Command, compare, mask, outline, plain

IMAGES = "--data brain-mri.zarr --set image_size=80"
SLICES = "--data brats.zarr --set filters=2"
NETWORKS = {
    "cnn": IMAGES, "alexnet": IMAGES, "vgg16": "--data brain-mri.zarr --set image_size=32",
    "vit": "--data brain-mri.zarr --set image_size=32", "unet": SLICES, "improved-unet": SLICES,
    "attention-unet": SLICES,
}  # fmt: skip
SETTINGS = "--set batch_size=4 --set precision=float32 --set deterministic=true --set threads=1"


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_run_directory(command: Command, work: Path, network: str) -> None:
    try:
        code, out, errors = command(f"submit --model {network} {NETWORKS[network]} {SETTINGS} --debug".split())
        assert code == 0, errors
        (run,) = (work / "runs" / "debug").iterdir()
        assert str(run.name) not in out
        files = sorted(path for path in run.rglob("*") if path.is_file())
        shown = [f"{path.relative_to(run)}\n{form(path)}" for path in files]
    finally:
        shutil.rmtree(work / "runs", ignore_errors=True)  # a VGG16 is large
    places = {str(work): "WORK", str(work.parent): "HOME"}
    compare(f"runs/{network}.txt", mask("\n\n".join([out + without_numbers(errors), *shown]), places))


def without_numbers(text: str) -> str:
    """Text without the numbers that were computed or measured, and the blanks before them; with names and shapes."""
    text = re.sub(r"\b\d\d:\d\d:\d\d\b", "<time>", text)
    text = re.sub(r"(?<![^ ])-?\d[\d.]*(e-?\d+)?%?( k| ms| [MG]B)?(?=[ ,;]|$)", "#", text, flags=re.MULTILINE)
    return re.sub(r" {2,}", "  ", re.sub(r"( +#)+", " #", text))


def form(path: Path) -> str:
    """Return the content of a file of a run, without the values that training computes."""
    if path.name in ("config.json", "split.json"):
        return plain(json.loads(path.read_text()))
    if path.name == "provenance.json":
        values = json.loads(path.read_text())
        values |= dict.fromkeys(("packages", "variables", "command"))  # of the machine, and of pytest
        return outline(values, texts=False)
    if path.suffix == ".json":
        return outline(json.loads(path.read_text()))
    if path.suffix == ".jsonl":
        return "".join(dict.fromkeys(outline([json.loads(line)]) for line in path.read_text().splitlines()))
    if path.suffix == ".csv":
        rows = list(csv.reader(path.open()))
        return f"{len(rows) - 1} rows of {', '.join(rows[0])}"
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            kinds = {name: "text" if array.dtype.kind == "U" else array.dtype for name, array in arrays.items()}
            shapes: dict[str, list[Any]] = {name: list(array.shape) for name, array in arrays.items()}
            for name in shapes:
                if name.startswith(("sample_", "wrong_")):  # as many as the network was right or wrong about
                    shapes[name][0] = "n"
            return "\n".join(f"{name}: {kinds[name]} {shapes[name]}" for name in sorted(kinds))
    if path.suffix == ".safetensors":
        content = path.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
        about = outline(dict(sorted(header.pop("__metadata__").items())), texts=False)
        return "\n".join([f"{name}: {item['dtype']} {item['shape']}" for name, item in header.items()]) + about
    if path.suffix == ".pt":
        return checkpoint(torch.load(path, weights_only=True))
    return f"{path.stat().st_size} bytes"


def checkpoint(value: Any) -> str:
    """Keys and types of a checkpoint; of tensors how many there are, and of how many values."""
    if isinstance(value, dict):
        tensors = [item for item in value.values() if isinstance(item, torch.Tensor)]
        if tensors:
            return f" {len(tensors)} tensors, {sum(tensor.numel() for tensor in tensors)} values"
        forms = {
            f"{key if isinstance(key, str) else '<number>'}:{checkpoint(item)}": None for key, item in value.items()
        }
        return "".join("\n" + text.replace("\n", "\n  ") for text in forms) or " {}"
    return f" <{type(value).__name__}>"
