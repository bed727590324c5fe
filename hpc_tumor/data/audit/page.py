"""Audit page: images, tables and charts in one HTML file without scripts or network access."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from hpc_tumor import __version__
from hpc_tumor.data.audit import text
from hpc_tumor.data.audit.audit import Audit
from hpc_tumor.data.audit.images import INTENSITIES, ImageFacts
from hpc_tumor.data.audit.memoriser import SIMILAR
from hpc_tumor.data.audit.pictures import COLORS, galleries
from hpc_tumor.data.audit.shortcuts import DEPTH, FOLDS, NOTABLE
from hpc_tumor.data.audit.volumes import VolumeFacts
from hpc_tumor.data.store.store import Store
from hpc_tumor.errors import UsageError
from hpc_tumor.system import atomic
from hpc_tumor.system.atomic import write_error
from hpc_tumor.table import Table

TEMPLATE = "page.html.j2"
_BINS = 24
_KNOWN = (
    "Images recognised as slices of the Cheng set (Cheng et al., doi 10.6084/m9.figshare.1512427), whose patients"
    " are published. Ids that differ by a suffix letter count as one patient. The patients of all other images are"
    " unknown."
)


@dataclass(frozen=True)
class PageTable:
    """A table of the page with an introduction; `words`: columns are text, not numbers."""

    table: Table
    lead: str = ""
    words: bool = False


@dataclass(frozen=True)
class Bar:
    """One stacked bar of a chart: parts as (name, number)."""

    name: str
    parts: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Histogram:
    """Counts over equal bins from `low` to `high`, in `unit`."""

    name: str
    counts: tuple[int, ...]
    low: str
    high: str
    color: str


def check_page(path: Path, store: Path) -> None:
    """Raise UsageError if `path` cannot be written, is inside the store, or does not end in .html."""
    if path.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"{path} does not end in .html: name an HTML file.")
    if path.resolve().is_relative_to(store.resolve()):
        raise UsageError(f"{path} is inside the store, which an audit must not change: name a file elsewhere.")
    if path.is_dir():
        raise UsageError(f"{path} is a folder: name the file to write, such as {path / 'audit.html'}.")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"there is no folder {path.parent} for {path.name}: create it, or name another.")


def write_page(audit: Audit, store: Store, path: Path) -> None:
    """Write the page to `path` atomically. Raises as `check_page`, and for a failed write."""
    check_page(path, store.path)
    page = render_page(audit, store)
    try:
        atomic.write_text(path, page)
    except OSError as error:
        raise write_error(error, path.parent, path.name) from error


def render_page(audit: Audit, store: Store) -> str:
    """Render the page as HTML. Raises DataError if an image cannot be read."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    bars, histograms = _charts(audit)
    return environment.get_template(TEMPLATE).render(
        audit=audit,
        unit="images" if audit.task == "classification" else "patients",
        verdicts=[
            (split.name, split.leaks, text.verdict(split)) for split in audit.splits
            if split.in_use or split.fold is None
        ],
        splits=text.split_table(audit.splits, brief=False),
        facts=text.fact_lines(audit),
        tables=_tables(audit),
        bars=bars,
        histograms=histograms,
        galleries=galleries(store, audit),
        colors={name: "#{:02x}{:02x}{:02x}".format(*rgb) for name, rgb in COLORS.items()},
        notes=_notes(audit),
        version=__version__,
    )  # fmt: skip


def _tables(audit: Audit) -> list[PageTable]:
    facts = audit.facts
    if isinstance(facts, ImageFacts):
        tables = [PageTable(text.class_table(facts))]
        if audit.patients:
            tables.append(PageTable(text.patient_table(audit), _KNOWN))
        if audit.shortcuts:
            lead = (
                f"Accuracy of a decision tree of depth {DEPTH} that uses only these facts, over {FOLDS} folds of"
                f" {audit.shortcuts[0].images:,} images, one of each set of duplicates. A fact predicts the class if"
                f" this is more than {NOTABLE:.0%} above always choosing the largest class."
            )
            tables.append(PageTable(text.shortcut_table(audit), lead, words=True))
        return tables
    tables = [
        PageTable(text.label_table(facts)),
        PageTable(text.modality_table(facts), "Means and standard deviations over the brain, as ranges over cases."),
    ]
    if facts.outliers:
        lead = "By the modified z-score (Iglewicz and Hoaglin 1993), based on the median absolute deviation."
        tables.append(PageTable(text.outlier_table(facts), lead, words=True))
    return tables


def _charts(audit: Audit) -> tuple[list[Bar], list[Histogram]]:
    facts = audit.facts
    if isinstance(facts, ImageFacts):
        bars = [Bar(item.name, (("train", item.train), ("test", item.test))) for item in facts.classes]
        return bars, []
    return [], [_histogram(facts, i, item.name) for i, item in enumerate(facts.labels) if item.cases]


def _histogram(facts: VolumeFacts, label: int, name: str) -> Histogram:
    all_volumes = np.array(list(facts.volumes.values()))
    low, high = all_volumes[all_volumes > 0].min() * 0.99, all_volumes.max() * 1.01
    volumes = all_volumes[:, label]
    counts = np.histogram(np.log(volumes[volumes > 0]), np.linspace(np.log(low), np.log(high), _BINS + 1))[0]
    color = "#{:02x}{:02x}{:02x}".format(*COLORS[name])
    return Histogram(name, tuple(counts.tolist()), f"{low:.3g} ml", f"{high:.3g} ml", color)


def _notes(audit: Audit) -> list[str]:
    if audit.task == "classification":
        return [
            "Counts are of test images. Copies have identical decoded pixels, or are near copies by the store's"
            ' measure, which misses some: see the closest pairs. "In training" means in training or validation.',
            "The memoriser predicts the class of the training or validation image with the highest correlation of"
            " thumbnails. File facts and intensities are logistic regressions, trained on training and validation: on"
            " mode, size, crop, border and file size, and on ten statistics of the grey levels"
            f" ({', '.join(INTENSITIES)}). A network that is not better than these has shown nothing.",
            f"Look-alikes are test images whose nearest neighbour correlates by at least {SIMILAR}, in any group."
            " Random: uniform guessing. Majority: the most frequent training class.",
        ]
    used = next((split.memoriser for split in audit.splits if split.memoriser), None)
    sampled = (
        f" Tested on {used.tested:,} slices with {used.known:,} candidates, of {used.cases:,} patients." if used else ""
    )
    return [
        "Two cases are one patient if their scans, their names or their ids in other editions match.",
        "A test slice has a neighbour if the same or an adjacent slice of the same patient is in the training or"
        " validation part.",
        "The memoriser predicts the labels of the most similar slice outside the test part (by thumbnails of the four"
        " modalities); its score is the mean Dice of WT, TC and ET over slices that contain them." + sampled,
        "Random: the labels of a random tumour slice outside the test part.",
    ]
