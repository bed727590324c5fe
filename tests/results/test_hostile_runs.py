"""Runs whose files hold anything at all: nothing crashes, nothing is silent, and order means nothing."""

from __future__ import annotations

import csv
import json
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_runs import (
    classification_run,
    config_of,
    full_classification_run,
    full_segmentation_run,
    segmentation_run,
    unfinished_run,
)

from hpc_tumor.results.compare.comparison import Comparison
from hpc_tumor.results.tables.layouts import terminal_tables
from hpc_tumor.results.tables.notes import group_notes
from hpc_tumor.results.write.as_json import as_json
from hpc_tumor.results.write.collect import collect_runs
from hpc_tumor.results.write.files import write_tables
from hpc_tumor.run_dir import RunDir

DICE = [(0.9, 0.8, 0.7), (0.5, 0.6, 0.7), (1.0, 0.9, 0.8)]
HOSTILE: list[Any] = [
    None, True, -1, 0, 1.5, 10**400, -(10**30), 1e308, math.nan, math.inf, -math.inf, "", "nan", "x" * 5000,
    "<script>alert(1)</script>", "=cmd|' /C calc'!A0", "\x1b[31mred\x07\x00", "\ud800", "a,b\n\"c\"",
    r"\input{/etc/passwd}",
    [], {}, ["a"], {"a": {"b": [1]}}, {"": None}, [[[]]],
]  # fmt: skip
CELLS = ["", "nan", "inf", "-1e400", "1e308", "=1+1", "\x1b[2J", '"', "a\x00b", "é" * 300, "1_000", "０", ",", "missed"]


def tables_and_files(comparison: Comparison, output: Path) -> None:
    """Everything a user may ask for, with what must hold of all of it."""
    for table in terminal_tables(comparison, 80):
        texts = [table.title, *table.notes, *(cell for row in table.rows for cell in row)]
        assert all(text.isprintable() for text in texts)
        assert all(len(row) == len(table.columns) for row in table.rows)
    json.dumps(as_json(comparison), default=str)
    for path in write_tables(comparison, output):
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
        if path.suffix == ".csv":
            assert len({len(row) for row in csv.reader(path.open(encoding="utf-8", newline=""))}) == 1


def dump(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8", errors="surrogatepass")


def mutated(value: Any, draw: Callable[[Any], Any], wrong: Any) -> Any:
    """`value` with one place in it, at any depth, replaced by `wrong`."""
    if isinstance(value, dict) and value and draw(st.booleans()):
        key = draw(st.sampled_from(sorted(value)))
        return {**value, key: mutated(value[key], draw, wrong)}
    if isinstance(value, dict) and value:
        key = draw(st.sampled_from([*sorted(value), "new\x1b key", "=1"]))
        return {**value, key: wrong}
    return wrong


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("originals")
    made = [
        full_segmentation_run(folder, "20250101-120000-unet-aaaaaa", "unet", patients=5),
        full_segmentation_run(folder, "20250101-120000-unet-bbbbbb", "unet", seed=1, patients=5),
        full_classification_run(folder, "20250101-120000-cnn-cccccc", "cnn", images=12),
        full_classification_run(folder, "20250101-120000-cnn-dddddd", "cnn", seed=1, images=12),
    ]
    return [run.path for run in made]


@pytest.mark.parametrize("examples", [30, pytest.param(3000, marks=pytest.mark.campaign)])
def test_a_good_run_made_bad_never_crashes(
    originals: list[Path], tmp_path_factory: pytest.TempPathFactory, examples: int
) -> None:
    @settings(deadline=None, max_examples=examples)
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        folder = tmp_path_factory.mktemp("bad")
        runs = [RunDir(shutil.copytree(path, folder / path.name)) for path in originals]
        for _ in range(data.draw(st.integers(1, 3))):
            spoil(data.draw(st.sampled_from(runs)), data)
        comparison = collect_runs(runs)
        assert len(comparison.results) + len(comparison.unfinished) + len(comparison.skipped) == len(runs)
        tables_and_files(comparison, folder / "out")
        shutil.rmtree(folder)

    check()


def spoil(run: RunDir, data: st.DataObject) -> None:
    """Change one thing in one of its files."""
    kind = data.draw(st.sampled_from(["result", "config", "cell", "row", "head", "bytes"]))
    if kind in ("result", "config"):
        path = run.result if kind == "result" else run.config
        try:
            value = json.loads(path.read_text())
        except ValueError:
            return
        dump(path, mutated(value, data.draw, data.draw(st.sampled_from(HOSTILE))))
    elif kind == "bytes":
        path = data.draw(st.sampled_from([run.result, run.config, run.cases]))
        content = path.read_bytes()
        place = data.draw(st.integers(0, len(content)))
        path.write_bytes(
            content[:place] + data.draw(st.sampled_from([b"", b"\xff\xfe", b"\x00" * 3 + content[place:]]))
        )
    else:
        lines = run.cases.read_bytes().split(b"\n")
        place = 0 if kind == "head" else data.draw(st.integers(0, len(lines) - 1))
        cells = lines[place].split(b",")
        if kind == "row":
            lines[place : place + 1] = data.draw(st.sampled_from([[], [lines[place]] * 2, [b"a,b"]]))
        else:
            cells[data.draw(st.integers(0, len(cells) - 1))] = data.draw(st.sampled_from(CELLS)).encode()
            lines[place] = b",".join(cells)
        run.cases.write_bytes(b"\n".join(lines))


def test_every_hostile_value_in_every_field(tmp_path: Path) -> None:
    run = full_classification_run(tmp_path, "20250101-120000-cnn-cccccc", "cnn", images=6)
    original = json.loads(run.result.read_text())
    for key in original:
        for value in HOSTILE:
            dump(run.result, {**original, key: value})
            comparison = collect_runs([run])
            assert len(comparison.results) + len(comparison.skipped) + len(comparison.unfinished) == 1
            if key in ("task", "best"):
                assert comparison.results == []
    dump(run.result, dict.fromkeys(original, "=\x1b<b>") | {key: original[key] for key in ("task", "model", "best")})
    tables_and_files(collect_runs([run]), tmp_path / "out")


@pytest.mark.slow
def test_permuted_runs_and_rows_change_no_byte_of_any_file(tmp_path: Path, originals: list[Path]) -> None:
    runs = [RunDir(shutil.copytree(path, tmp_path / "runs" / path.name)) for path in originals]
    runs += [
        full_segmentation_run(tmp_path / "runs", "20250101-120000-improved-unet-eeeeee", "improved-unet", patients=5)
    ]
    runs += [full_classification_run(tmp_path / "runs", "20250101-120000-vit-ffffff", "vit", images=12)]
    runs += [full_segmentation_run(tmp_path / "runs", f"f{fold}", "unet", patients=4, fold=fold) for fold in (0, 1)]
    runs += [unfinished_run(tmp_path / "runs", "u", state="training", epoch=2), RunDir(tmp_path / "nothing")]
    before = {path.name: path.read_bytes() for path in write_tables(collect_runs(runs), tmp_path / "out")}
    for seed in range(5):
        generator = random.Random(seed)
        generator.shuffle(runs)
        for run in runs:
            if run.cases.is_file():
                head, *rows = run.cases.read_text().splitlines()
                generator.shuffle(rows)
                run.cases.write_text("\n".join([head, *rows]) + "\n")
        after = {path.name: path.read_bytes() for path in write_tables(collect_runs(runs), tmp_path / "out")}
        assert after == before


def test_other_runs_leave_the_figures_of_an_entry_alone(tmp_path: Path) -> None:
    runs = [full_segmentation_run(tmp_path, model, model, patients=9) for model in ("unet", "improved-unet")]
    alone = collect_runs(runs[:1]).groups[0].entries[0]
    beside = collect_runs(runs).groups[0].entries[0]
    assert dict(alone.statistics) == dict(beside.statistics)


def test_unequal_things_are_never_compared_in_silence(tmp_path: Path) -> None:
    alike = [segmentation_run(tmp_path, name, DICE, model=name) for name in ("unet", "improved-unet")]
    (group,) = collect_runs(alike).groups
    usual = group_notes(group)

    def new_notes(*others: RunDir) -> str:
        comparison = collect_runs([*alike, *others])
        (with_others,) = comparison.groups
        return " ".join(note for note in group_notes(with_others) if note not in usual)

    fewer = segmentation_run(tmp_path, "fewer", DICE[:2], model="attention-unet")
    assert "tested on 2 different sets of cases" in new_notes(fewer)
    assert "attention-unet" in new_notes(fewer)
    config = config_of("attention-unet", "segmentation", limit_batches=2)
    limited = segmentation_run(tmp_path, "limited", DICE, model="attention-unet", config=config)
    assert "limited: used at most 2 batches" in new_notes(limited)
    short = segmentation_run(tmp_path, "short", DICE, model="attention-unet", stopped_early=True, epochs=3)
    assert "stopped early" in new_notes(short)
    assert "short (3)" in new_notes(short)
    skipping = segmentation_run(tmp_path, "skipping", DICE, model="attention-unet", skipped_steps=7)
    assert "skipping (7)" in new_notes(skipping)
    # Another store or another split is another table, with its own title.
    store = segmentation_run(tmp_path, "store", DICE, fingerprint="other")
    leaking = segmentation_run(tmp_path, "leaking", DICE, split="published", split_leaks=True)
    groups = collect_runs([*alike, store, leaking]).groups
    assert len({one.title for one in groups}) == len(groups) == 3
    (leaks,) = (one for one in groups if one.split_leaks)
    assert "(leaks)" in leaks.title
    assert any("This split leaks" in note for note in group_notes(leaks))
    open_run = unfinished_run(tmp_path, "open", state="training")
    assert [run.run for run in collect_runs([*alike, open_run]).unfinished] == ["open"]


def test_many_remarks_are_few_notes(tmp_path: Path) -> None:
    config = config_of("cnn", "classification", limit_batches=2)
    runs = [
        classification_run(
            tmp_path, f"r{seed:02}", [True, False], seed=seed, config=config, stopped_early=True, skipped_steps=1
        )
        for seed in range(40)
    ]
    (group,) = collect_runs(runs).groups
    notes = group_notes(group)
    assert len(notes) < 10
    assert max(len(note) for note in notes) < 300
    assert any("and 37 more: used at most 2 batches" in note for note in notes)
