"""Measure the recognition of patients: recall on copies made here, false matches, and CPU time.

    python tools/benchmark_patients.py [--slices FOLDER] [--others FOLDER...] [--strangers NPZ]

Slices of the Cheng set are images that are named by their number, `758.jpg`. Others are Brain Tumor MRI trees: the
recognised images are counted, and the most similar of the rest printed. Strangers are slices once more, each compared
with the reference without its patient: all that are recognised are false matches.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from benchmark_duplicates import changed, contrasted, encoded, head
from benchmark_machine import describe_machine
from PIL import Image, ImageDraw

from hpc_tumor.data.patients.recognise import MARGIN, THRESHOLD, Recognised, recognise
from hpc_tumor.data.patients.reference import patient_of
from hpc_tumor.data.raw.brain_mri import decode_grey, thumbnail
from hpc_tumor.data.raw.sources import inspect_source

Turn, Filter = Image.Transpose, Image.Resampling
Copy = Callable[[Image.Image], Image.Image]
_SHOWN = 8


def main() -> None:
    """Run the selected measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=Path, metavar="FOLDER", help="copy these slices in many ways")
    parser.add_argument("--others", type=Path, nargs="*", default=[], metavar="FOLDER", help="recognise these images")
    parser.add_argument("--strangers", type=Path, metavar="NPZ", help="slices-64.npz, compared without their patient")
    options = parser.parse_args()
    print(describe_machine())
    print(f"recognised: {THRESHOLD} or more, and {MARGIN} more than any other patient\n")
    if options.slices:
        print_recall({int(path.stem): decode_grey(path)[0] for path in sorted(options.slices.rglob("*.jpg"))})
    for folder in options.others:
        print_others(folder)
    if options.strangers:
        print_strangers(options.strangers)


def ways() -> dict[str, Copy]:
    """Return the kinds of copies by name."""
    kinds: dict[str, Copy] = {"plain": lambda image: image}
    kinds |= {turn.name.lower().replace("_", " "): lambda image, turn=turn: image.transpose(turn) for turn in Turn}
    kinds |= {f"rotated {a:+}°": lambda image, a=a: image.rotate(a, Filter.BICUBIC) for a in (-5, -3, -1, 1, 3, 5)}
    kinds |= {f"cut {c:.0%}": lambda image, c=c: cut(image, c, c, c, c) for c in (0.02, 0.04, 0.06, 0.08)}
    kinds |= {f"padded {c:.0%}": lambda image, c=c: cut(image, -c, -c, -c, -c) for c in (0.02, 0.04, 0.06, 0.08)}
    kinds |= {f"cut above {c:.0%}": lambda image, c=c: cut(image, 0, c, 0, 0) for c in (0.04, 0.08)}
    kinds |= {f"cut left {c:.0%}": lambda image, c=c: cut(image, c, 0, 0, 0) for c in (0.04, 0.08)}
    kinds |= {f"padded right {c:.0%}": lambda image, c=c: cut(image, 0, 0, -c, 0) for c in (0.04, 0.08)}
    kinds |= {f"padded below {c:.0%}": lambda image, c=c: cut(image, 0, 0, 0, -c) for c in (0.04, 0.08)}
    kinds |= {f"JPEG quality {q}": lambda image, q=q: encoded(image, q) for q in (50, 75, 95)}
    kinds |= {f"brightness × {f}": lambda image, f=f: changed(image, lambda v: v * f) for f in (0.7, 1.3)}
    kinds |= {f"brightness {d:+}": lambda image, d=d: changed(image, lambda v: v + d) for d in (-30, 30)}
    kinds |= {f"contrast × {f}": lambda image, f=f: contrasted(image, f) for f in (0.7, 1.3)}
    kinds |= {f"{n} pixels": lambda image, n=n: image.resize((n, n), Filter.BICUBIC) for n in (96, 224, 768)}
    return kinds | {"border with text": bordered, "text": written}


def cut(image: Image.Image, left: float, top: float, right: float, bottom: float) -> Image.Image:
    """Return the image without these shares of its sides; negative ones are added in black."""
    width, height = image.size
    box = (width * left, height * top, width * (1 - right), height * (1 - bottom))
    return image.crop(tuple(map(round, box)))  # type: ignore[arg-type]


def bordered(image: Image.Image) -> Image.Image:
    """Return the image in a white border with text below."""
    whole = Image.new("L", (round(image.width * 1.06), round(image.height * 1.1)), 255)
    whole.paste(image, (round(image.width * 0.03), round(image.height * 0.03)))
    ImageDraw.Draw(whole).text((5, image.height * 1.05), "Patient 12  T1 C+ axial", fill=0)
    return whole


def written(image: Image.Image) -> Image.Image:
    """Return the image with text in a corner."""
    copy = image.copy()
    ImageDraw.Draw(copy).text((5, 5), "T1 C+ 12:30 AX", fill=255, font_size=max(10, image.height // 20))
    return copy


def recognised(pictures: list[Image.Image], without: np.ndarray | None = None) -> Recognised:
    """Recognise pictures by what a store keeps of them."""
    return recognise(np.stack([thumbnail(p) for p in pictures]), np.stack([head(p) for p in pictures]), without)


def print_recall(slices: dict[int, Image.Image]) -> None:
    """Print the recall of each kind of copy, by patient."""
    patients = [patient_of(number) for number in slices]
    print(f"{len(slices)} slices of {len(set(patients))} patients\n\n{'copy':<24} right %  wrong  least")
    for name, copy in ways().items():
        found = recognised([copy(picture) for picture in slices.values()])
        right = np.array([a == b for a, b in zip(found.patients, patients, strict=True)])
        wrong = sum(1 for patient, is_right in zip(found.patients, right, strict=True) if patient and not is_right)
        print(f"{name:<24} {100 * right.mean():>7.1f} {wrong:>6} {found.correlation.min():>6.3f}")


def print_others(folder: Path) -> None:
    """Print the number of recognised images, the most similar of the others, and the CPU time."""
    cases = inspect_source(folder, "brain-mri").cases
    pictures = [decode_grey(case.files["image"].path)[0] for case in cases]
    thumbnails, heads = (np.stack([make(picture) for picture in pictures]) for make in (thumbnail, head))
    recognise(thumbnails[:1], heads[:1])  # reads the reference
    began = time.process_time()
    found = recognise(thumbnails, heads)
    seconds = time.process_time() - began
    unknown = [i for i in np.argsort(-found.correlation).tolist() if not found.slice[i]]
    known = np.count_nonzero(found.slice)
    print(f"\n{folder}: {known} of {len(cases)} images recognised, {seconds:.1f} s of CPU; most similar of the others:")
    print("\n".join(f"{found.correlation[i]:.3f}  {cases[i].id}" for i in unknown[:_SHOWN]))


def print_strangers(path: Path) -> None:
    """Print the false matches of slices whose patient is not in the reference."""
    with np.load(path) as arrays:
        pictures = [Image.fromarray(p).resize((256, 256), Filter.BILINEAR) for p in arrays["slices"]]
        numbers = arrays["index"].astype(np.int32)
    found = recognised(pictures, numbers)
    levels = np.percentile(found.correlation, [50, 99, 100])
    print(f"\n{len(numbers)} strangers: correlation {levels.round(3).tolist()} (median, 99 %, all), recognised:")
    for i in np.flatnonzero(found.slice).tolist():
        print(f"{found.correlation[i]:.3f}  slice {numbers[i]} ({patient_of(int(numbers[i]))}) as {found.slice[i]}"
              f" ({found.patients[i]})")  # fmt: skip


if __name__ == "__main__":
    main()
