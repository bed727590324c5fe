"""Figures of the best, median and worst test case of each network, and of a sample of the data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from hpc_tumor.results.compare.comparison import Group
from hpc_tumor.results.compare.entries import Entry
from hpc_tumor.results.figures.canvas.drawing import Plan
from hpc_tumor.results.figures.canvas.palette import FALSE_NEGATIVE, FALSE_POSITIVE, LABEL_COLOURS, OTHER, RIGHT
from hpc_tumor.results.figures.canvas.rowed import best_of
from hpc_tumor.results.figures.canvas.sheet import SIZE, SMALL, WIDTH, Sheet
from hpc_tumor.results.figures.canvas.wording import slug, words
from hpc_tumor.results.figures.overlays import (
    grey,
    heat_colours,
    heat_scale,
    predicted_masks,
    show,
    truth_masks,
    window_of,
    with_difference,
    with_labels,
)
from hpc_tumor.results.figures.pictures import WHICH, Pictures, pictures_of, raster_plan, shown_number
from hpc_tumor.vocabulary import MODALITIES, series

MOST_ENTRIES = 12  # with pictures
_GAP = 0.04


@dataclass(frozen=True)
class Case:
    """One slice of a case: images `(4, H, W)`, truth and prediction `(H, W)`, probabilities `(3, H, W)`."""

    which: str
    facts: Mapping[str, Any]
    images: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    probabilities: np.ndarray | None

    @property
    def words(self) -> str:
        """Name of the case, slice and Dice."""
        number = self.facts.get("slice")
        dice = ", ".join(f"{label} {shown_number(self.facts, f'dice_{label}')}" for label in LABEL_COLOURS)
        return (
            f"{words(self.facts.get('case', '?'), 44)}, slice {number if isinstance(number, int) else '?'}"
            f" · Dice {shown_number(self.facts, 'dice')} ({dice})"
        )


def cases_of(pictures: Pictures, cut: bool = True) -> list[Case]:
    """Return the cases whose arrays are complete and consistent, cropped to the head if `cut`."""
    return [case for which in WHICH if (case := _case_of(pictures, which, cut)) is not None]


def _case_of(pictures: Pictures, which: str, cut: bool) -> Case | None:
    images, truth = pictures.get(f"{which}_images", 3), pictures.get(f"{which}_truth", 2)
    prediction, likely = pictures.get(f"{which}_prediction", 2), pictures.get(f"{which}_probabilities", 3)
    if images is None or truth is None or prediction is None or len(images) != len(MODALITIES):
        return None
    if not images.shape[1:] == truth.shape == prediction.shape:
        return None
    if likely is not None and likely.shape != (len(LABEL_COLOURS), *truth.shape):
        likely = None
    rows, columns = window_of(images) if cut else (slice(None), slice(None))
    return Case(
        which, pictures.case(which), images[:, rows, columns], truth[rows, columns], prediction[rows, columns],
        None if likely is None else likely[:, rows, columns],
    )  # fmt: skip


def shown_entries(group: Group) -> Iterator[tuple[int, Entry, Pictures]]:
    """Yield the best entries with pictures, with their number in the group from 1."""
    pictures = {id(entry): pictures_of(entry) for entry in group.entries}
    best = best_of([entry for entry in group.entries if pictures[id(entry)] is not None], MOST_ENTRIES)
    for number, entry in enumerate(group.entries, 1):
        if (own := pictures[id(entry)]) is not None and any(entry is other for other in best):
            yield number, entry, own


def plan_cases(group: Group) -> list[Plan]:
    """Plan the cases of each entry, and the probabilities of one of them."""
    if group.task != "segmentation":
        return []
    plans = []
    for number, entry, pictures in shown_entries(group):
        cases = cases_of(pictures)
        if not cases:
            continue
        kinds = series([case.which for case in cases])
        stem, name = f"{number}-{slug(entry.model)}", words(entry.name, 80)
        caption = (
            f"{name}, one run: the {kinds} test case by mean label Dice, each at its slice with most tumour. Dice is of"
            " the whole case. Truth and prediction over T1ce, difference over FLAIR."
            + (" Shown before small pieces are removed." if any(run.cleaning for run in entry.runs) else "")
        )
        plans.append(raster_plan(f"cases-{stem}", "cases", f"Test cases of {name}", caption, partial(_of_cases, cases)))
        middle = next((case for case in cases if case.which == "median"), cases[0])
        if middle.probabilities is not None:
            caption = f"{name}: {middle.which} case, {middle.words}. Probability of each label, and the prediction."
            title = f"Probabilities of {name}"
            plans.append(raster_plan(f"cases-{stem}-probabilities", "cases", title, caption, partial(_likely, middle)))
    return plans


def _of_cases(cases: list[Case]) -> Sheet:
    side = (WIDTH - 6 * _GAP) / 7
    head, top, step = 0.2, 0.22, side + 0.27
    sheet = Sheet(top + step * len(cases) + 0.3)
    columns = (*MODALITIES, "truth", "prediction", "difference")
    for column, name in enumerate(columns):
        sheet.text(column * (side + _GAP) + side / 2, 0.1, name, ha="center", fontsize=SMALL)
    for row, case in enumerate(cases):
        y = top + row * step
        sheet.text(0, y + head / 2, case.which, fontsize=SMALL, fontweight="bold")
        sheet.text(0.55, y + head / 2, case.words, fontsize=SMALL)
        for column, picture in enumerate(_pictures(case)):
            show(sheet.axes(column * (side + _GAP), y + head, side, side), picture)
    legend(sheet, 0.0, sheet.height - 0.14, difference=True)
    return sheet


def _pictures(case: Case) -> list[np.ndarray]:
    flair, enhanced = case.images[0], case.images[2]
    return [
        *(grey(image) for image in case.images),
        with_labels(enhanced, truth_masks(case.truth)),
        with_labels(enhanced, predicted_masks(case.prediction)),
        with_difference(flair, case.truth, case.prediction),
    ]


def legend(sheet: Sheet, x: float, y: float, difference: bool = False) -> None:
    """Draw the legend of the labels, and of the difference if asked for."""
    keys = [("NCR/NET" if name == "NCR" else name, {"patch": colour}) for name, colour in LABEL_COLOURS.items()]
    if difference:
        keys += [
            ("agreement", {"patch": RIGHT}), ("false positive", {"patch": FALSE_POSITIVE}),
            ("false negative", {"patch": FALSE_NEGATIVE}), ("another label", {"patch": OTHER}),
        ]  # fmt: skip
    sheet.keys(x, y, keys)


def _likely(case: Case) -> Sheet:
    enhanced = case.images[2]
    assert case.probabilities is not None
    side = (WIDTH - 0.55 - 4 * _GAP) / 5
    top = 0.22
    sheet = Sheet(top + side + 0.3)
    places = [place * (side + _GAP) for place in range(5)]
    show(sheet.axes(places[0], top, side, side), with_labels(enhanced, truth_masks(case.truth)))
    for place, likely in zip(places[1:4], case.probabilities, strict=True):
        show(sheet.axes(place, top, side, side), heat_colours(likely))
    show(sheet.axes(places[4], top, side, side), with_labels(enhanced, predicted_masks(case.prediction)))
    for place, name in zip(places, ("truth", *(f"p({label})" for label in LABEL_COLOURS), "prediction"), strict=True):
        sheet.text(place + side / 2, 0.1, name, ha="center", fontsize=SMALL)
    heat_scale(sheet, places[4] + side + 0.1, top, side)
    legend(sheet, 0.0, sheet.height - 0.14)
    return sheet


def plan_samples(group: Group) -> list[Plan]:
    """Plan the modalities and labels of one case."""
    if group.task != "segmentation":
        return []
    for _, entry, pictures in shown_entries(group):
        cases = cases_of(pictures)
        if cases:
            caption = (
                f"{words(cases[0].facts.get('case', '?'))}, the {cases[0].which} test case of {words(entry.name)}: the"
                " four modalities as the networks see them, and the true labels over T1ce, together and one by one."
            )
            return [raster_plan("samples", "samples", "A case and its labels", caption, partial(_sample, cases[0]))]
    return []


def _sample(case: Case) -> Sheet:
    side = (WIDTH - 3 * 0.06) / 4
    head, step = 0.2, side + 0.22
    sheet = Sheet(2 * step + 0.24)
    masks, enhanced = truth_masks(case.truth), case.images[2]
    pictures = [
        *zip(MODALITIES, map(grey, case.images), strict=True),
        ("all labels", with_labels(enhanced, masks)),
        *((label, with_labels(enhanced, {label: masks[label]})) for label in LABEL_COLOURS),
    ]
    for index, (name, picture) in enumerate(pictures):
        x, y = (index % 4) * (side + 0.06), (index // 4) * step
        sheet.text(x + side / 2, y + 0.1, name, ha="center", fontsize=SIZE)
        show(sheet.axes(x, y + head, side, side), picture)
    legend(sheet, 0.0, sheet.height - 0.11)
    return sheet
