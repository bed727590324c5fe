"""An audit in words: verdicts, facts, and rows of tables, as the terminal and the page both show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from hpc_tumor.data.audit.duplicates import Duplicates
from hpc_tumor.data.audit.images import ImageFacts
from hpc_tumor.data.audit.leakage import Leakage, SplitAudit
from hpc_tumor.data.audit.memoriser import SIMILAR
from hpc_tumor.data.audit.volumes import OUTLIER, Spread, VolumeFacts
from hpc_tumor.data.splits.units import describe_patients
from hpc_tumor.vocabulary import counted, listed

if TYPE_CHECKING:
    from hpc_tumor.data.audit.audit import Audit

NOTHING = "–"
_CLINICAL = {"age": "age, years", "survival_days": "survival, days", "alive": "alive when last seen"}
_MOST_COUNTED = 4


def verdict(split: SplitAudit) -> str:
    """Verdict on a split: does it leak, in one sentence with its numbers."""
    if split.refused:
        return f"cannot be made: {split.refused}"
    found = split.leakage
    assert found is not None  # only a refused split has none
    images = found.unit == "images"
    text = _images(found) if images else _patients(found)
    if not split.leaks:
        return f"does not leak: {text}"
    if found.shared:
        return f"LEAKS: {text}"
    if found.val_shared:
        what = "images with a twin" if images else "patients"
        return f"LEAKS: {text}, but {found.val_shared:,} {what} of validation are in training, too"
    return f"UNSAFE: {text}, but nothing in this protocol prevents it"


def fact_lines(audit: Audit) -> list[tuple[str, str]]:
    """The fingerprint as names and values."""
    facts = audit.facts
    lines = _image_lines(facts) if isinstance(facts, ImageFacts) else _volume_lines(facts)
    found = [("duplicates" if row == 0 else "", _duplicates(kind)) for row, kind in enumerate(audit.duplicates)]
    lines += found or [("duplicates", "none found")]
    lines += [("look at", line) for line in audit.doubtful]
    return [*lines, ("fingerprint", audit.fingerprint)]


def split_table(splits: Sequence[SplitAudit], *, brief: bool) -> tuple[list[str], list[list[str]]]:
    """Headers and rows, the first column a name; `brief`: the folds that are not in use as one row of ranges."""
    made = [split for split in splits if split.leakage]
    folds = [split for split in made if brief and split.fold is not None and not split.in_use]
    groups = [[split] for split in made if split not in folds] + ([folds] if folds else [])
    cells = [[_cells(split) for split in group] for group in groups]
    columns = list(cells[0][0]) if cells else []
    rows = [
        [_group_name(group), *(_range([row[column] for row in some_rows]) for column in columns)]
        for group, some_rows in zip(groups, cells, strict=True)
    ]
    return ["split", *columns], rows


def _cells(split: SplitAudit) -> dict[str, str | int | None]:
    found, memoriser = split.leakage, split.memoriser
    assert found is not None  # only a refused split has none
    cells: dict[str, str | int | None] = {"train": found.train, "val": found.val, "test": found.test}
    if found.unit == "images":
        cells["test images with a twin"] = found.shared
        cells["pixel-identical"] = found.identical
        cells[f"look-alikes ≥ {SIMILAR}"] = memoriser.similar if memoriser else None
    else:
        cells["test patients in training"] = found.shared
        cells["test slices with a neighbour"] = found.neighbours
    cells["memoriser"] = _score(memoriser.score if memoriser else None)
    cells["random"] = _score(memoriser.random if memoriser else None)
    if found.unit == "images":
        cells["majority"] = _score(memoriser.majority if memoriser else None)
    return cells


def class_table(facts: ImageFacts) -> tuple[list[str], list[list[str]]]:
    """A row per class: images by part and mode, brightness."""
    modes = list(facts.modes)
    rows = [
        [item.name, f"{item.train:,}", f"{item.test:,}", *(f"{item.modes.get(mode, 0):,}" for mode in modes),
         f"{item.brightness:.0f} ± {item.contrast:.0f}" if item.modes else NOTHING]
        for item in facts.classes
    ]  # fmt: skip
    return ["class", "train", "test", *(f"mode {mode}" for mode in modes), "grey level"], rows


def label_table(facts: VolumeFacts) -> tuple[list[str], list[list[str]]]:
    """A row per label: how many cases and slices show it, and its volumes."""
    rows = [
        [item.name, f"{item.cases:,}", f"{item.slices:,}", f"{item.share:.1%}", _number(item.volume.low),
         _number(item.volume.median), _number(item.volume.high)]
        for item in facts.labels
    ]  # fmt: skip
    return ["label", "cases", "slices", "share of labels", "least, ml", "median, ml", "most, ml"], rows


def modality_table(facts: VolumeFacts) -> tuple[list[str], list[list[str]]]:
    """A row per modality: extremes, and the brain's mean and deviation over the cases."""
    rows = [
        [item.name, _number(item.low), _number(item.high), _between(item.mean), _between(item.deviation)]
        for item in facts.modalities
    ]  # fmt: skip
    return ["modality", "lowest", "highest", "mean in the brain", "deviation in the brain"], rows


def shortcut_table(audit: Audit) -> tuple[list[str], list[list[str]]]:
    """A row per kind of fact: how often the class follows from it."""
    rows = [
        [item.name, item.sees, f"{item.accuracy:.1%}", f"{item.majority:.1%}", "yes" if item.notable else "no"]
        for item in audit.shortcuts
    ]
    return ["fact", "sees", "accuracy", "majority", "gives the class away"], rows


def _images(found: Leakage) -> str:
    of = counted(found.tested, "test image")
    if not found.shared:
        return f"none of {of} has a twin in training"
    verb = "has" if found.shared == 1 else "have"
    return f"{found.shared:,} of {of} {verb} a twin in training, {found.identical:,} pixel-identical"


def _patients(found: Leakage) -> str:
    of = counted(found.tested, "test patient")
    if not found.shared:
        return f"none of {of} is in training"
    slices, near = found.slices or 0, found.neighbours or 0
    return (
        f"{found.shared:,} of {of} {'is' if found.shared == 1 else 'are'} in training, too;"
        f" {near:,} of {slices:,} test slices ({near / max(slices, 1):.0%}) have a neighbouring slice there"
    )


def _image_lines(facts: ImageFacts) -> list[tuple[str, str]]:
    total = sum(facts.sizes.values())
    lines = [
        ("stored as", f"{facts.side} × {facts.side}, grey, cropped to the head"),
        ("sizes of files", f"{frequencies(facts.sizes)}; {facts.square:,} of {total:,} square"),
        ("modes", frequencies(facts.modes)),
    ]
    if facts.blank:
        lines.append(("blank", listed(facts.blank)))
    return lines


def _volume_lines(facts: VolumeFacts) -> list[tuple[str, str]]:
    tumour = facts.tumour_slices
    lines = [
        ("patients", describe_patients(len(facts.volumes), facts.repeated)),
        ("editions", frequencies(facts.editions)),
        ("voxels, z × y × x", frequencies(facts.shapes)),
        ("spacing, mm", frequencies(facts.spacings)),
        ("type", frequencies(facts.dtypes)),
        ("slices", f"{facts.slices:,}; {_between(tumour)} of a case show tumour"),
    ]
    for item in facts.labels:
        if item.without:
            lines.append((f"without {item.name}", listed(item.without)))
    for name, cases in (("empty masks", facts.empty_masks), ("all labelled", facts.full_masks)):
        if cases:
            lines.append((name, listed(cases)))
    if facts.other_affine:
        lines.append(
            ("shifted files", listed([f"{case} ({', '.join(at)})" for case, at in facts.other_affine.items()]))
        )
    if facts.outliers:
        worst = listed([f"{item.case} ({item.what}, z {item.score:+.1f})" for item in facts.outliers])
        lines.append(("unlike the others", f"{worst}; |z| over {OUTLIER}"))
    lines += [(_CLINICAL.get(key, key), _clinical(value)) for key, value in facts.clinical.items()]
    return lines


def frequencies(counts: Mapping[str, int]) -> str:
    """`a (3), b (2)`, the most frequent of them."""
    rest = len(counts) - _MOST_COUNTED
    text = ", ".join(f"{name} ({count:,})" for name, count in list(counts.items())[:_MOST_COUNTED])
    return text + (f" and {rest:,} others" if rest > 0 else "")


def _duplicates(found: Duplicates) -> str:
    if not found.members:
        return f"no {found.kind} images"
    if not (found.train or found.test or found.across):
        return f"{found.kind}: " + listed([" = ".join(names) for names in found.members])
    disagree = f"; {len(found.disagreeing):,} of different classes" if found.disagreeing else ""
    return (
        f"{found.images:,} {found.kind} images in {len(found.members):,} sets, {found.train:,} within training,"
        f" {found.test:,} within test, {found.across:,} across{disagree}"
    )


def _clinical(value: object) -> str:
    if isinstance(value, Spread):
        return f"{_between(value)}, median {_number(value.median)}, known of {value.n:,}"
    return frequencies(value) if isinstance(value, dict) else str(value)


def _group_name(group: Sequence[SplitAudit]) -> str:
    first = group[0]
    name = first.name if len(group) == 1 else f"{first.kind}, {len(group)} folds"
    return f"{name} (in use)" if first.in_use else name


def _range(values: Sequence[str | int | None]) -> str:
    """One value, or from the least to the greatest of several."""
    known = sorted((value for value in values if value is not None), key=float)
    if not known:
        return NOTHING
    least, most = (value if isinstance(value, str) else f"{value:,}" for value in (known[0], known[-1]))
    return least if least == most else f"{least} to {most}"


def _score(value: float | None) -> str | None:
    return None if value is None else f"{value:.3f}"


def _between(spread: Spread) -> str:
    low, high = _number(spread.low), _number(spread.high)
    return low if low == high else f"{low} to {high}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
