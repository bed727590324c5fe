"""Measure the detection of near copies of images: recall on copies made here, pairs to judge by eye, and speed.

    python tools/benchmark_duplicates.py [FOLDER...] [--sheet pairs.png --low 0.9 --high 0.97] [--speed 7023 20000]

FOLDER is a Brain Tumor MRI tree; default: those in HPC_TUMOR_REAL_DATA. Recall: every image is copied in several ways,
and a copy is found if its similarity reaches the threshold. Precision is judged by eye: the sheet shows pairs side by
side, the second in the orientation that fits best, with their number and similarity above.
"""

from __future__ import annotations

import argparse
import io
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from benchmark_machine import describe_machine
from PIL import Image, ImageDraw

from hpc_tumor.data.raw.brain_mri import IMAGE_SIZE, decode_grey, head_box, head_thumbnail, thumbnail
from hpc_tumor.data.raw.sources import inspect_source
from hpc_tumor.data.splits.near_duplicates import (
    SIDE,
    THRESHOLD,
    features,
    near_duplicate_groups,
    similar_pairs,
    similarity,
)

Turn, Filter = Image.Transpose, Image.Resampling
Copy = Callable[[Image.Image], Image.Image]
_SHOWN = 160  # pixels per side of a picture on the sheet
_COLUMNS = 6


def main() -> None:
    """Read the images and print the selected measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER")
    parser.add_argument("--sheet", type=Path, metavar="PNG", help="write pairs between --low and --high side by side")
    parser.add_argument("--low", type=float, default=0.9)
    parser.add_argument("--high", type=float, default=0.97)
    parser.add_argument("--speed", type=int, nargs="*", default=[], metavar="N", help="time grouping N made-up images")
    options = parser.parse_args()
    real = os.environ.get("HPC_TUMOR_REAL_DATA")
    if not options.folders and real:
        options.folders = [Path(real) / "brain-mri", Path(real) / "brain-mri-native"]
    if not options.folders and not options.speed:
        parser.error("name a folder of images, or set HPC_TUMOR_REAL_DATA")
    print(describe_machine())
    cases = [case for folder in options.folders for case in inspect_source(folder, "brain-mri").cases]
    if cases:
        pictures = [decode_grey(case.files["image"].path)[0] for case in cases]
        thumbnails = np.stack([thumbnail(picture) for picture in pictures])
        print_recall(pictures, thumbnails)
        print_groups(
            thumbnails, np.stack([head(picture) for picture in pictures]), [case.meta["class"] for case in cases]
        )
        if options.sheet:
            write_sheet(options.sheet, pictures, thumbnails, options.low, options.high)
    for count in options.speed:
        print_speed(count)


def head(picture: Image.Image) -> np.ndarray:
    """Return the thumbnail of the head, as a store keeps it."""
    return head_thumbnail(picture.resize((IMAGE_SIZE, IMAGE_SIZE), Filter.BILINEAR, head_box(picture)))


def ways() -> dict[str, Copy]:
    """Return the kinds of copies by name."""
    kinds: dict[str, Copy] = {f"JPEG quality {q}": lambda image, q=q: encoded(image, q) for q in (50, 75, 95)}
    kinds["half size, nearest pixel"] = lambda image: resized(image, 0.5, Filter.NEAREST)
    kinds |= {f"size × {f}": lambda image, f=f: resized(image, f) for f in (0.5, 0.75, 1.3, 2.0)}
    kinds |= {f"brightness × {f}": lambda image, f=f: changed(image, lambda v: v * f) for f in (0.8, 1.2)}
    kinds |= {f"brightness {d:+}": lambda image, d=d: changed(image, lambda v: v + d) for d in (25, 51, -25, -51)}
    kinds |= {f"contrast × {f}": lambda image, f=f: contrasted(image, f) for f in (0.8, 1.2)}
    kinds |= {f"gamma {g}": lambda image, g=g: changed(image, lambda v: 255 * (v / 255) ** g) for g in (0.7, 1.4)}
    kinds |= {turn.name.lower().replace("_", " "): lambda image, turn=turn: image.transpose(turn) for turn in Turn}
    kinds["flipped, half size, × 1.2, quality 60"] = lambda image: encoded(
        changed(resized(image.transpose(Turn.FLIP_LEFT_RIGHT), 0.5), lambda v: v * 1.2), 60
    )
    return kinds


def encoded(image: Image.Image, quality: int) -> Image.Image:
    """Return the image after JPEG compression."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("L")


def resized(image: Image.Image, factor: float, how: Image.Resampling = Filter.BICUBIC) -> Image.Image:
    """Return the image with `factor` times as many pixels on each side."""
    return image.resize((round(image.width * factor), round(image.height * factor)), how)


def changed(image: Image.Image, grey: Callable[[np.ndarray], np.ndarray]) -> Image.Image:
    """Return the image with every grey level changed, clipped to black and white."""
    return Image.fromarray(np.clip(grey(np.asarray(image, np.float64)), 0, 255).astype(np.uint8))


def contrasted(image: Image.Image, factor: float) -> Image.Image:
    """Return the image with its contrast around the mean multiplied by `factor`."""
    mean = float(np.asarray(image).mean())
    return changed(image, lambda values: mean + (values - mean) * factor)


def print_recall(pictures: list[Image.Image], thumbnails: np.ndarray) -> None:
    """Print the recall of each kind of copy."""
    before = features(thumbnails)
    print(f"{len(pictures)} images; found: as alike as {THRESHOLD} or more\n\n{'copy':<40} found %   least")
    for name, copy in ways().items():
        after = features(np.stack([thumbnail(copy(picture)) for picture in pictures]))
        values = np.array([similarity(a[None], b[None]).item() for a, b in zip(before, after, strict=True)])
        print(f"{name:<40} {100 * np.mean(values >= THRESHOLD):>7.1f} {values.min():>7.3f}")


def print_groups(thumbnails: np.ndarray, heads: np.ndarray, classes: list[str]) -> None:
    """Print pairs by similarity, sizes of groups, and groups with several classes."""
    values = np.concatenate([found for _, found in similar_pairs(thumbnails, 0.9)] or [np.empty(0)])
    edges = [0.9, 0.92, 0.94, 0.95, 0.96, 0.965, 0.97, 0.975, 0.98, 0.985, 0.99, 0.995, 2]
    print("\npairs from  " + "  ".join(f"{edge:>5}" for edge in edges[:-1]))
    print("            " + "  ".join(f"{count:>5}" for count in np.histogram(values, edges)[0]))
    groups = near_duplicate_groups(thumbnails, heads, np.arange(len(thumbnails)))
    sizes = Counter(np.bincount(groups).tolist())
    print("groups      " + ", ".join(f"{count} of {size}" for size, count in sorted(sizes.items())))
    mixed = len({(group, name) for group, name in zip(groups.tolist(), classes, strict=True)}) - len(set(groups))
    print(f"groups of several classes: {mixed}")


def write_sheet(path: Path, pictures: list[Image.Image], thumbnails: np.ndarray, low: float, high: float) -> None:
    """Draw the pairs between two similarities, least similar first."""
    found = [(value, i, j) for pairs, values in similar_pairs(thumbnails, low)
             for (i, j), value in zip(pairs.tolist(), values.tolist(), strict=True) if value < high]  # fmt: skip
    rows = -(-len(found) // _COLUMNS)
    sheet = Image.new("L", (_COLUMNS * (2 * _SHOWN + 8), max(1, rows) * (_SHOWN + 14)))
    draw = ImageDraw.Draw(sheet)
    for place, (value, i, j) in enumerate(sorted(found)):
        x, y = place % _COLUMNS * (2 * _SHOWN + 8), place // _COLUMNS * (_SHOWN + 14)
        draw.text((x, y), f"{value:.4f}  {i}, {j}", fill=255)
        sheet.paste(pictures[i].resize((_SHOWN, _SHOWN)), (x, y + 14))
        sheet.paste(best_turn(thumbnails[i], pictures[j]).resize((_SHOWN, _SHOWN)), (x + _SHOWN, y + 14))
    sheet.save(path)
    print(f"\n{len(found)} pairs from {low} to {high}: {path}")


def best_turn(model: np.ndarray, picture: Image.Image) -> Image.Image:
    """Return `picture`, flipped or rotated to match a thumbnail best."""
    turned = [picture, *(picture.transpose(turn) for turn in Turn)]
    return max(turned, key=lambda image: np.corrcoef(model.ravel(), thumbnail(image).ravel())[0, 1])


def print_speed(count: int) -> None:
    """Print the seconds to group synthetic images without copies."""
    draw = np.random.default_rng(0)
    thumbnails = draw.integers(0, 256, (count, SIDE, SIDE), np.uint8)
    began, cpu = time.perf_counter(), time.process_time()
    near_duplicate_groups(thumbnails, thumbnails, np.arange(count))
    print(f"{count:,} images: {time.perf_counter() - began:.1f} s, {time.process_time() - cpu:.1f} s of CPU")


if __name__ == "__main__":
    main()
