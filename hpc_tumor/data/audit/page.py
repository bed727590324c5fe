"""The audit as one HTML page: pictures, tables and charts in a single file that needs no network and no script."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from hpc_tumor import __version__
from hpc_tumor.data.audit import text
from hpc_tumor.data.audit.audit import Audit
from hpc_tumor.data.audit.images import ImageFacts
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


@dataclass(frozen=True)
class PageTable:
    """A table of the page with what it is about; `words`: its columns hold words, not numbers."""

    table: Table
    lead: str = ""
    words: bool = False


@dataclass(frozen=True)
class Bar:
    """One bar of a chart: parts as (name, number), drawn one after the other."""

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
    """Raises UsageError where a page cannot be written to `path`, would be inside the store, or is not called HTML."""
    if path.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"{path} does not end in .html: the page of an audit is HTML, so name such a file.")
    if path.resolve().is_relative_to(store.resolve()):
        raise UsageError(f"{path} is inside the store, which an audit does not change: name a file elsewhere.")
    if path.is_dir():
        raise UsageError(f"{path} is a folder: name the file to write, such as {path / 'audit.html'}.")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"there is no folder {path.parent} to write {path.name} to: make it, or name another.")


def write_page(audit: Audit, store: Store, path: Path) -> None:
    """Write the page to `path`, at once and whole. Raises as `check_page`, and where the disk refuses."""
    check_page(path, store.path)
    page = render_page(audit, store)
    try:
        atomic.write_text(path, page)
    except OSError as error:
        raise write_error(error, path.parent, path.name) from error


def render_page(audit: Audit, store: Store) -> str:
    """The page as HTML. Raises DataError where a picture cannot be read."""
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
        if audit.shortcuts:
            lead = (
                f"Accuracy of a decision tree of depth {DEPTH} that sees these facts alone and no picture, over"
                f" {FOLDS} folds of {audit.shortcuts[0].images:,} images, one of each set of duplicates. A fact gives"
                f" the class away where this is more than {NOTABLE:.0%} above always naming the largest class."
            )
            tables.append(PageTable(text.shortcut_table(audit), lead, words=True))
        return tables
    tables = [
        PageTable(text.label_table(facts)),
        PageTable(text.modality_table(facts), "Means and deviations over the brain, least to greatest of the cases."),
    ]
    if facts.outliers:
        lead = "By the modified z-score (Iglewicz and Hoaglin 1993): distance from the median in units of the median's."
        tables.append(PageTable(text.outlier_table(facts), lead, words=True))
    return tables


def _charts(audit: Audit) -> tuple[list[Bar], list[Histogram]]:
    facts = audit.facts
    if isinstance(facts, ImageFacts):
        bars = [Bar(item.name, (("train", item.train), ("test", item.test))) for item in facts.classes]
        return bars, []
    return [], [_histogram(facts, i, item.name) for i, item in enumerate(facts.labels) if item.cases]


def _histogram(facts: VolumeFacts, label: int, name: str) -> Histogram:
    """Volumes of one label over the cases that have it, on a logarithmic axis that all labels share."""
    all_volumes = np.array(list(facts.volumes.values()))
    low, high = all_volumes[all_volumes > 0].min() * 0.99, all_volumes.max() * 1.01
    volumes = all_volumes[:, label]
    counts = np.histogram(np.log(volumes[volumes > 0]), np.linspace(np.log(low), np.log(high), _BINS + 1))[0]
    color = "#{:02x}{:02x}{:02x}".format(*COLORS[name])
    return Histogram(name, tuple(counts.tolist()), f"{low:.3g} ml", f"{high:.3g} ml", color)


def _notes(audit: Audit) -> list[str]:
    if audit.task == "classification":
        return [
            "Twins are images whose decoded pixels are identical, or nearly so by the measure that the store was made"
            " with. In training means: in its training or validation part.",
            "The memoriser answers with the class of the training or validation image whose thumbnail correlates most:"
            " a network that scores no better on the same split has shown nothing of tumours.",
            f"Look-alikes are test images whose nearest neighbour correlates at {SIMILAR} at least, whatever the"
            " groups say. Random: guessing evenly. Majority: always the most frequent training class.",
        ]
    used = next((split.memoriser for split in audit.splits if split.memoriser), None)
    sampled = (
        f" It was tried on {used.tested:,} slices with {used.known:,} to choose from, of {used.cases:,} patients."
        if used
        else ""
    )
    return [
        "Two cases are one patient where their content, their intensities or an id of another edition agree.",
        "A test slice has a neighbour where the same patient's slice, or the one above or below it, is in the training"
        " or validation part.",
        "The memoriser answers with the labels of the most similar slice outside the test part (thumbnails of the four"
        " modalities); scored is the mean Dice of WT, TC and ET over slices that show them." + sampled,
        "Random: the labels of any tumour slice outside the test part.",
    ]
