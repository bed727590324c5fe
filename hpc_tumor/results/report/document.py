"""Render the report: one self-contained HTML file with all tables and figures of a comparison."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from hpc_tumor import __version__
from hpc_tumor.results.compare.comparison import Comparison, Group
from hpc_tumor.results.compare.conclusions import conclusions
from hpc_tumor.results.compare.measures import CASES, measure
from hpc_tumor.results.compare.origin import read_origin
from hpc_tumor.results.compare.statistics import RESAMPLES
from hpc_tumor.results.figures import Drawing
from hpc_tumor.results.tables.details import skipped_table, unfinished_table
from hpc_tumor.results.tables.layouts import group_tables
from hpc_tumor.table import Table
from hpc_tumor.vocabulary import plural

_TEMPLATE = Path(__file__).parent / "template"
MOST_ORIGINS = 200  # runs whose settings are shown


@dataclass(frozen=True)
class Part:
    """A subsection of a group with its tables and figures; `first` names the kind that comes first."""

    key: str
    title: str
    tables: tuple[tuple[str, Table], ...]
    sections: tuple[str, ...]
    first: str


@dataclass(frozen=True)
class Section:
    """The section of one group of comparable runs."""

    key: str
    title: str
    short: str
    verdict: tuple[str, ...]
    data: tuple[str, ...]
    leaks: bool
    parts: tuple[Part, ...]
    drawings: tuple[Drawing, ...]


# Heading, tables, figures, and the kind that comes first.
_EVIDENCE = (
    ("Scores", ("results",), ("scores",), "tables"),
    ("Paired tests", ("tests",), (), "tables"),
    ("Ranks", ("ranks",), ("ranks",), "tables"),
)
_ABOUT_RUNS = (
    ("Learning curves", (), ("curves",), "figures"),
    ("Cost", ("cost",), ("tradeoffs",), "figures"),
    ("Data", (), ("samples", "data"), "figures"),
    ("Runs", ("runs",), (), "tables"),
)
_PARTS: dict[str, tuple[tuple[str, tuple[str, ...], tuple[str, ...], str], ...]] = {
    "segmentation": (
        *_EVIDENCE,
        ("Labels and regions", ("parts",), ("distributions",), "figures"),
        ("Best, median and worst patients", (), ("cases",), "figures"),
        ("Attention gates", (), ("attention",), "figures"),
        *_ABOUT_RUNS,
    ),
    "classification": (
        *_EVIDENCE,
        ("Classes", ("parts",), ("confusion",), "figures"),
        ("Confidence and calibration", (), ("calibration", "distributions"), "figures"),
        ("Confident mistakes", (), ("mistakes",), "figures"),
        ("Attention and first-layer filters", (), ("attention", "filters"), "figures"),
        *_ABOUT_RUNS,
    ),
}
_QUESTION = {
    "segmentation": "Which network segments tumours best?",
    "classification": "Which network classifies tumours best?",
}


def render_report(comparison: Comparison, drawings: Sequence[Drawing], made: datetime, folder: str) -> str:
    """Return the report as HTML.

    Args:
        drawings: figures, each with the index of its group.
        made: time of creation, shown in the last line.
        folder: folder of the runs, shown in the last line.
    """
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    groups = [
        _section(group, index, [drawing for drawing in drawings if drawing.group == index])
        for index, group in enumerate(comparison.groups)
    ]
    origins = [(run, entry.name) for group in comparison.groups for entry in group.entries for run in entry.all_runs]
    return environment.get_template("report.html.j2").render(
        title=_title(comparison.groups),
        over=_over(comparison),
        groups=groups,
        others=[table for table in (unfinished_table(comparison), skipped_table(comparison)) if table.rows],
        origins=[read_origin(run, name) for run, name in origins[:MOST_ORIGINS]],
        origins_left=max(0, len(origins) - MOST_ORIGINS),
        version=__version__,
        made=f"{made:%Y-%m-%d %H:%M}",
        folder=folder,
        resamples=f"{RESAMPLES:,}",
    )


def _title(groups: Sequence[Group]) -> str:
    tasks = list(dict.fromkeys(group.task for group in groups))
    return " ".join(_QUESTION[task] for task in tasks) or "Comparison"


def _over(comparison: Comparison) -> str:
    runs, entries = len(comparison.results), sum(len(group.entries) for group in comparison.groups)
    parts = [f"{runs} finished {plural(runs, 'run')} in {entries} {'entry' if entries == 1 else 'entries'}"]
    if comparison.unfinished:
        parts.append(f"{len(comparison.unfinished)} unfinished")
    if comparison.skipped:
        parts.append(f"{len(comparison.skipped)} skipped")
    if comparison.left_out:
        parts.append(f"{comparison.left_out} not selected")
    return ", ".join(parts)


def _section(group: Group, index: int, drawings: Sequence[Drawing]) -> Section:
    key = f"group-{index + 1}"
    tables = group_tables(group)
    drawn = {drawing.section for drawing in drawings}
    parts = []
    for number, (title, names, sections, first) in enumerate(_PARTS[group.task]):
        chosen = tuple((name, tables[name]) for name in names if name in tables)
        if chosen or drawn & set(sections):
            parts.append(Part(f"{key}-{number + 1}", title, chosen, sections, first))
    return Section(
        key, group.title, _short(group), tuple(_verdict(group)), tuple(_data(group)), group.split_leaks is True,
        tuple(parts), tuple(drawings),
    )  # fmt: skip


def _short(group: Group) -> str:
    folds = f", {group.folds} folds" if group.folds else ""
    return f"{group.task.capitalize()}, split {group.split}{folds}"


def _verdict(group: Group) -> Iterable[str]:
    if len(group.entries) == 1:
        (entry,) = group.entries
        score = measure(group.task, group.main)
        statistic = entry.statistics.get(group.main)
        if statistic is not None:
            low, high = statistic.low, statistic.high
            between = f" (95 % interval {score.show(low)} to {score.show(high)})" if low is not None else ""
            yield f"{entry.name}: {score.title} {score.show(statistic.mean)}{between}."
    yield from conclusions(group)


_DATASETS = {"brats": "BraTS", "brats-h5": "BraTS (H5 edition)", "brain-mri": "Brain Tumor MRI", "cheng": "Cheng set"}
_SPLITS = {
    "by-patient": "No patient is in two parts of the split.",
    "deduplicated": "No image has an exact or near duplicate in another part of the split; other slices of its patient"
    " may be there.",
    "published": "Published split.",
}


def _data(group: Group) -> Iterable[str]:
    run = group.runs[0]
    unit = CASES[group.task]
    dataset = _DATASETS.get(group.dataset or "", group.dataset or "Unknown data")
    each = " in a fold" if group.folds else ""
    counts = ((run.train_cases, "training"), (run.val_cases, "validation"))
    sizes = [f"{count:,} for {use}{each}" for count, use in counts if count]
    tested = sorted({entry.n for entry in group.entries if entry.n is not None})
    sizes += [f"{tested[-1]:,} for testing"] if tested else []
    yield f"{dataset}, number of {unit}: {', '.join(sizes)}." if sizes else f"{dataset}."
    about = _SPLITS.get(group.split, f"Split from a file or by source ({group.split}).")
    images = group.task == "classification" and group.split == "by-patient"
    yield "No known patient is in two parts of the split." if images else about
    if group.leakage:
        yield f"Across its parts: {group.leakage}."
    known = [images.known for images in group.entries[0].tested_images if images.known is not None]
    if copies := sum(int(copied.sum()) for copied in known):
        yield f"{copies:,} of the test images have an exact or near duplicate in training or validation."
    if group.folds:
        folds = sorted({fold for entry in group.entries for fold in entry.folds})
        if len(folds) == group.folds:
            yield f"{group.folds} folds: each {unit.removesuffix('s')} is tested once."
        else:
            yield f"{len(folds)} of {group.folds} folds {'was' if len(folds) == 1 else 'were'} run."
