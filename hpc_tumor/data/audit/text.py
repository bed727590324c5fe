"""Verdicts, facts and tables of an audit for the terminal, the page and JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from hpc_tumor.data.audit.audit import Audit
from hpc_tumor.data.audit.duplicates import Duplicates
from hpc_tumor.data.audit.images import ClassFacts, ImageFacts
from hpc_tumor.data.audit.leakage import Leakage, SplitAudit
from hpc_tumor.data.audit.memoriser import SIMILAR
from hpc_tumor.data.audit.patients import Conflict
from hpc_tumor.data.audit.volumes import OUTLIER, Spread, VolumeFacts
from hpc_tumor.data.splits.units import describe_patients
from hpc_tumor.table import NOTHING, Column, Table, fill
from hpc_tumor.vocabulary import CONTROLS, counted, listed

_CLINICAL = {"age": "age, years", "survival_days": "survival, days", "alive": "alive when last seen"}
MOST_CONFLICTS = 12  # listed
_MOST_COUNTED = 4


def as_json(audit: Audit) -> dict[str, Any]:
    """Return every number, with the verdicts."""
    value = asdict(audit)
    for row, split in zip(value["splits"], audit.splits, strict=True):
        row |= {"name": split.name, "leaks": split.leaks, "verdict": verdict(split)}
    for row, shortcut in zip(value["shortcuts"], audit.shortcuts, strict=True):
        row["notable"] = shortcut.notable
    return value


def verdict(split: SplitAudit) -> str:
    """Describe in one sentence whether a split leaks, with its numbers."""
    if split.refused:
        return f"cannot be made: {split.refused}"
    leakage = split.leakage
    assert leakage is not None  # only a refused split has none
    text = leakage.images.describe() if leakage.images else _patients(leakage)
    below = "; the closest pairs are below" if leakage.images and split.in_use and not leakage.shared else ""
    if not split.leaks:
        return f"{'no leak found' if leakage.images else 'does not leak'}: {text}{below}"
    if split.found:
        val = leakage.val_shared if not (leakage.images or leakage.shared) else 0
        return f"LEAKS: {text}" + (f", but {val:,} validation patients are also in training" if val else below)
    return f"UNSAFE: {text}, but this protocol does not prevent it{below}"


def fact_lines(audit: Audit) -> list[tuple[str, str]]:
    """Return the statistics as names and values."""
    facts = audit.facts
    lines = _image_lines(facts) if isinstance(facts, ImageFacts) else _volume_lines(facts)
    duplicates = [("duplicates" if row == 0 else "", _duplicates(kind)) for row, kind in enumerate(audit.duplicates)]
    lines += duplicates or [("duplicates", "none found")]
    lines += _known(audit) if isinstance(facts, ImageFacts) else []
    lines += [("check", line) for line in audit.doubtful]
    return [*lines, ("fingerprint", audit.fingerprint)]


def split_table(splits: Sequence[SplitAudit], *, brief: bool) -> Table:
    """Build the table of each split's leakage; `brief`: folds not in use are one row of ranges."""
    made = [split for split in splits if split.leakage]
    folds = [split for split in made if brief and split.fold is not None and not split.in_use]
    groups = [[split] for split in made if split not in folds] + ([folds] if folds else [])
    images = any(split.leakage.unit == "images" for split in made if split.leakage)
    columns = _OF_IMAGES if images else _OF_PATIENTS
    return fill("Splits", (Column("split", "left", cell=_group_name), *columns), groups)


def _of_group(title: str, value: Callable[[SplitAudit], str | int | None], keep: int = 99) -> Column:
    """Build a column of a value of one split, or of its range over several."""
    return Column(title, keep=keep, cell=lambda group: _range([value(split) for split in group]))


def _of_leakage(title: str, name: str, keep: int = 99) -> Column:
    return _of_group(title, lambda split: getattr(split.leakage, name), keep)


def _of_images(title: str, name: str, keep: int = 99) -> Column:
    return _of_group(title, lambda split: getattr(split.leakage.images, name) if split.leakage else None, keep)


def _of_memoriser(title: str, name: str, keep: int = 99) -> Column:
    return _of_group(title, lambda split: f"{getattr(split.memoriser, name):.3f}" if split.memoriser else None, keep)


def _of_shortcut(name: str) -> Column:
    return _of_group(
        CONTROLS[name], lambda split: f"{split.shortcuts[name]:.3f}" if name in split.shortcuts else None, 70
    )


_SIZES = (_of_leakage("train", "train", 60), _of_leakage("val", "val", 40), _of_leakage("test", "test"))
_MEMORISER = (_of_memoriser("memoriser", "score"), _of_memoriser("random", "random", 45))
_OF_IMAGES = (
    *_SIZES,
    _of_leakage("with a copy", "shared"),
    _of_leakage("pixel-identical", "identical", 50),
    _of_images("of known patients", "known", 48),
    _of_images("patient in training", "same_patient"),
    _of_group(f"look-alikes ≥ {SIMILAR}", lambda split: split.memoriser.similar if split.memoriser else None, 30),
    *_MEMORISER,
    _of_shortcut("file_facts"),
    _of_shortcut("intensities"),
    _of_memoriser("majority", "majority", 20),
)
_OF_PATIENTS = (
    *_SIZES,
    _of_leakage("test patients in training", "shared"),
    _of_leakage("test slices with a neighbour", "neighbours"),
    *_MEMORISER,
)


def class_table(facts: ImageFacts) -> Table:
    """Build the table of classes: images by part and mode, brightness."""
    columns = (
        Column("class", "left", cell=lambda item: item.name),
        Column("train", keep=60, cell=lambda item: f"{item.train:,}"),
        Column("test", cell=lambda item: f"{item.test:,}"),
        *map(_of_mode, facts.modes),
        Column("grey level", cell=_grey),
    )
    return fill("Classes", columns, facts.classes)


def _grey(item: ClassFacts) -> str:
    return f"{item.brightness:.0f} ± {item.contrast:.0f}" if item.modes else NOTHING


def _of_mode(mode: str) -> Column:
    return Column(f"mode {mode}", cell=lambda item: f"{item.modes.get(mode, 0):,}")


def label_table(facts: VolumeFacts) -> Table:
    """Build the table of labels: cases and slices that show it, and its volumes."""
    columns = (
        Column("label", "left", cell=lambda item: item.name),
        Column("cases", cell=lambda item: f"{item.cases:,}"),
        Column("slices", cell=lambda item: f"{item.slices:,}"),
        Column("share of labels", cell=lambda item: f"{item.share:.1%}"),
        Column("min, ml", cell=lambda item: _number(item.volume.low)),
        Column("median, ml", cell=lambda item: _number(item.volume.median)),
        Column("max, ml", cell=lambda item: _number(item.volume.high)),
    )
    return fill("Labels", columns, facts.labels)


def modality_table(facts: VolumeFacts) -> Table:
    """Build the table of modalities: extremes, and the brain's mean and deviation over the cases."""
    columns = (
        Column("modality", "left", cell=lambda item: item.name),
        Column("lowest", keep=40, cell=lambda item: _number(item.low)),
        Column("highest", keep=40, cell=lambda item: _number(item.high)),
        Column("mean in the brain", cell=lambda item: _between(item.mean)),
        Column("deviation in the brain", cell=lambda item: _between(item.deviation)),
    )
    return fill("Intensities", columns, facts.modalities)


def shortcut_table(audit: Audit) -> Table:
    """Build the table of shortcuts: accuracy of predicting the class from each kind of fact."""
    columns = (
        Column("fact", "left", cell=lambda item: item.name),
        Column("sees", "left", cell=lambda item: item.sees),
        Column("accuracy", cell=lambda item: f"{item.accuracy:.1%}"),
        Column("majority", keep=20, cell=lambda item: f"{item.majority:.1%}"),
        Column("predicts the class", cell=lambda item: "yes" if item.notable else "no"),
    )
    return fill("Shortcuts to the class", columns, audit.shortcuts)


def patient_table(audit: Audit) -> Table:
    """Build the table of known patients: their images by class and published part."""
    columns = (
        Column("class", "left", cell=lambda item: item.name),
        Column("images", keep=40, cell=lambda item: f"{item.images:,}"),
        Column("of known patients", cell=lambda item: f"{item.known:,}"),
        Column("in training", keep=50, cell=lambda item: _of(*item.train)),
        Column("in test", keep=50, cell=lambda item: _of(*item.test)),
        Column("patients", cell=lambda item: f"{item.patients:,}"),
        Column("patients in both", keep=60, cell=lambda item: f"{item.shared:,}"),
    )
    return fill("Known patients in the published parts", columns, audit.patients)


def conflict_table(audit: Audit) -> Table:
    """Build the table of images whose class is contradicted."""
    columns = (
        Column("image", "left", wrap=True, cell=lambda item: item.path),
        Column("filed as", "left", cell=lambda item: item.filed),
        Column("contradicted by", "left", wrap=True, cell=contradiction),
    )
    more = len(audit.conflicts) - MOST_CONFLICTS
    notes = [f"and {counted(more, 'more image')}; --json lists all"] if more > 0 else []
    return fill("Label conflicts", columns, audit.conflicts[:MOST_CONFLICTS], notes)


def contradiction(conflict: Conflict) -> str:
    """Describe what contradicts the class of an image: `slice 12 of the Cheng set: meningioma`."""
    copy = f"its copy {conflict.copy}"
    if not conflict.slice:
        return f"{copy}: {conflict.contrary}"
    return f"slice {conflict.slice} of the Cheng set: {conflict.contrary}" + (f"; {copy}" if conflict.copy else "")


def pair_table(audit: Audit, most: int = 3) -> Table:
    """Build the table of the `most` similar pairs of a test image and one of the other parts of the split in use."""
    columns = (
        Column("test image", "left", wrap=True, cell=lambda pair: pair.test),
        Column("closest in training", "left", wrap=True, cell=lambda pair: pair.nearest),
        Column("similarity", cell=lambda pair: f"{pair.similarity:.4f}"),
    )
    return fill("Closest pairs across the parts in use", columns, audit.in_use.closest[:most])


def _of(count: int, total: int) -> str:
    return f"{count:,} of {total:,}"


def _known(audit: Audit) -> list[tuple[str, str]]:
    """Describe the known patients and the label conflicts."""
    if audit.schema < 2:  # of images: it lacks patients
        known = f"unknown to a store of an earlier version; bring it up to date: hpc-tumor patients {audit.store}"
    elif not audit.patients:
        known = "none known: no image is recognised as a slice of the Cheng set"
    else:
        every = audit.patients[-1]
        known = f"{_of(every.known, every.images)} images show {counted(every.patients, 'known patient')}"
    count = len(audit.conflicts)
    conflicts = "none found"
    if count:
        conflicts = f"{counted(count, 'image')} of a class that a copy or a known slice contradicts, listed below"
    return [("patients", known), ("label conflicts", conflicts)]


def outlier_table(facts: VolumeFacts) -> Table:
    """Build the table of outliers, one row per case and quantity."""
    columns = (
        Column("case", "left", cell=lambda item: item.case),
        Column("in", cell=lambda item: item.what),
        Column("value", cell=lambda item: f"{item.value:.4g}"),
        Column("z", cell=lambda item: f"{item.score:+.1f}"),
    )
    return fill("Outliers", columns, facts.outliers)


def _patients(leakage: Leakage) -> str:
    tested = counted(leakage.tested, "test patient")
    if not leakage.shared:
        return f"none of {tested} is in training"
    slices, near = leakage.slices or 0, leakage.neighbours or 0
    return (
        f"{leakage.shared:,} of {tested} {'is' if leakage.shared == 1 else 'are'} also in training;"
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
        lines.append(("outliers", f"{worst}; |z| over {OUTLIER}"))
    lines += [(_CLINICAL.get(key, key), _clinical(value)) for key, value in facts.clinical.items()]
    return lines


def frequencies(counts: Mapping[str, int]) -> str:
    """Format the most frequent values as `a (3), b (2)`."""
    rest = len(counts) - _MOST_COUNTED
    text = ", ".join(f"{name} ({count:,})" for name, count in list(counts.items())[:_MOST_COUNTED])
    return text + (f" and {rest:,} others" if rest > 0 else "")


def _duplicates(sets: Duplicates) -> str:
    if not sets.members:
        return f"no {sets.kind} images"
    if not (sets.train or sets.test or sets.across):
        return f"{sets.kind}: " + listed([" = ".join(names) for names in sets.members])
    disagree = f"; {len(sets.disagreeing):,} of different classes" if sets.disagreeing else ""
    return (
        f"{sets.images:,} {sets.kind} images in {len(sets.members):,} sets, {sets.train:,} within training,"
        f" {sets.test:,} within test, {sets.across:,} across{disagree}"
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
    known = sorted((value for value in values if value is not None), key=float)
    if not known:
        return NOTHING
    least, most = (value if isinstance(value, str) else f"{value:,}" for value in (known[0], known[-1]))
    return least if least == most else f"{least} to {most}"


def _between(spread: Spread) -> str:
    low, high = _number(spread.low), _number(spread.high)
    return low if low == high else f"{low} to {high}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
