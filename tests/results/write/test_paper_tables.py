"""The tables of a paper: which columns, what is bold, and that pdflatex sets them without a warning."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_runs import (
    SEGMENTERS,
    classification_run,
    full_classification_run,
    full_segmentation_run,
    segmentation_run,
    seven_models,
    write_image_cases,
)
from test_latex import compile_alone

from hpc_tumor.results.compare.comparison import Comparison
from hpc_tumor.results.compare.conclusions import conclusions
from hpc_tumor.results.tables.layouts import MOST_ROWS, paper_tables
from hpc_tumor.results.write.collect import collect_runs
from hpc_tumor.results.write.files import paper
from hpc_tumor.table import Table
from hpc_tumor.vocabulary import CONTROLS

MOST = 125  # characters a row: letters 6 points high in an article


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    return collect_runs(seven_models(tmp_path_factory.mktemp("runs")))


def titles(table: Table) -> list[str]:
    return [column.title for column in table.columns]


def test_columns_by_hand(comparison: Comparison) -> None:
    classification, segmentation = (paper_tables(group) for group in comparison.groups)
    assert titles(classification[0]) == [
        "model", "acc. % [95 % CI]", "± sd over seeds", "new images %", "balanced %", "F1 %", "AUROC", "MCC", "ECE",
    ]  # fmt: skip
    assert titles(segmentation[0]) == [
        "model", "Dice [95 % CI]", "± sd over seeds", "Dice WT", "Dice TC", "Dice ET", "HD95, mm", "NSD",
    ]  # fmt: skip
    names = [row[0] for row in segmentation[0].rows]
    assert names[:2] == ["unet, 3 seeds", "unet: published (leaking split)"]
    assert [table.title for table in segmentation[1:]] == [
        "Cost", "Paired tests", "Ranks and their stability",
    ]  # fmt: skip
    assert any("leaks" in note for note in segmentation[0].notes)


def test_rows_are_narrow_enough_for_a_page(comparison: Comparison) -> None:
    for group in comparison.groups:
        for table in paper_tables(group):
            assert table.width <= MOST, table.title


def test_the_best_of_ours_is_bold(comparison: Comparison) -> None:
    for group in comparison.groups:
        table = paper_tables(group)[0]
        ours = [place for place, row in enumerate(table.rows) if "seeds" in row[0]]
        for column, title in enumerate(titles(table)):
            bold = [row for row, place in table.strong if place == column]
            if title in ("model", "± sd over seeds"):
                assert bold == []
                continue
            values = {place: float(table.rows[place][column].split()[0]) for place in ours}
            best = (min if title[:3] in ("HD9", "ECE") else max)(values.values())
            assert sorted(bold) == [place for place in ours if values[place] == best]


def test_nothing_is_bold_where_nothing_is_compared(tmp_path: Path) -> None:
    alone = segmentation_run(tmp_path, "a", [(0.9, 0.8, 0.7), (0.5, 0.6, 0.7)])
    other = segmentation_run(tmp_path, "b", [(0.9, 0.9, 0.9)] * 3, model="improved-unet")
    for runs in ([alone], [alone, other]):
        (group,) = collect_runs(runs).groups
        assert all(table.strong == frozenset() for table in paper_tables(group))


@pytest.mark.slow
def test_many_entries_make_no_table_longer_than_a_page(tmp_path: Path) -> None:
    runs = [segmentation_run(tmp_path, f"r{i}", [(0.5 + i / 200,) * 3] * 4, model=f"net-{i}") for i in range(60)]
    (group,) = collect_runs(runs).groups
    for table in paper_tables(group):
        assert len(table.rows) <= MOST_ROWS + 1
    assert (len(group.alike), len(group.compared)) == (60, 20)
    assert "net-59 has the highest Dice; " in conclusions(group)[0]
    assert conclusions(group)[0].endswith("Only the best 20 of 60 entries.")
    results = paper_tables(group)[0]
    assert results.notes[0] == f"Only the best {MOST_ROWS} of 60 entries."
    assert {"net-59", "net-20"} <= {row[0] for row in results.rows}
    assert "net-19" not in {row[0] for row in results.rows}


def test_many_classifiers_against_three_controls_fit_a_page(tmp_path: Path) -> None:
    runs = [full_classification_run(tmp_path, f"r{index}", f"net-{index:02}", images=60) for index in range(12)]
    (group,) = collect_runs(runs).groups
    rows = [row[1:3] for row in paper_tables(group)[2].rows]
    assert len(rows) <= MOST_ROWS
    best = {entry.name for entry in sorted(group.compared, key=lambda entry: -(entry.score or 0))[:8]}
    for control in CONTROLS.values():
        assert {row[0] for row in rows if row[1] == control} == best


@pytest.mark.parametrize("entries", [9, 25])
def test_many_classifiers_against_each_other_and_the_neighbour_fit_a_page(tmp_path: Path, entries: int) -> None:
    runs = []
    for index in range(entries):
        right = [place < 4 + index for place in range(40)]
        runs.append(classification_run(tmp_path, f"r{index}", right, model=f"net-{index:02}"))
        write_image_cases(runs[-1], right)
    (group,) = collect_runs(runs).groups
    rows = [row[1:3] for row in paper_tables(group)[2].rows]
    assert len(rows) <= MOST_ROWS
    assert [row[0] for row in rows if row[1] == "nearest neighbour"] == [
        f"net-{index:02}" for index in range(max(0, entries - 20), entries)
    ]


@pytest.mark.latex
def test_seven_models_compile_without_an_overfull_box(comparison: Comparison, tmp_path: Path) -> None:
    tex = paper(comparison)
    assert "Overfull" not in compile_alone(tmp_path, tex)
    (tmp_path / "comparison.tex").write_text(tex)
    for options in ("", "[twocolumn]"):
        head = rf"\documentclass{options}{{article}}\usepackage{{booktabs,graphicx}}\begin{{document}}"
        assert "Overfull" not in compile_alone(tmp_path, rf"{head}A\input{{comparison}}\end{{document}}", "paper")


@pytest.mark.latex
def test_hostile_names_compile_too(tmp_path: Path) -> None:
    names = [r"\input{/etc/passwd}", r"\end{document}", "%&$#_^~{}", "*[x]", "“µ→≥” \u202e脑", "a" * 290]
    runs = [full_segmentation_run(tmp_path / "runs", f"r{i}", name, patients=5) for i, name in enumerate(names)]
    runs += [classification_run(tmp_path / "runs", f"c{i}", [True, False], model=name) for i, name in enumerate(names)]
    runs += [full_segmentation_run(tmp_path / "runs", model, model, patients=5) for model in SEGMENTERS]
    compile_alone(tmp_path, paper(collect_runs(runs)))
