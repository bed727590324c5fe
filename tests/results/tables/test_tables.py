"""The comparison on the terminal and in files."""

import csv
import errno
import io
import json
import math
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_runs import classification_run, segmentation_run, unfinished_run

from hpc_tumor.errors import HpcTumorError, UsageError
from hpc_tumor.results.compare.comparison import Comparison, Group
from hpc_tumor.results.read.cases import TestCases
from hpc_tumor.results.read.run_result import RunResult
from hpc_tumor.results.tables.layouts import group_tables, terminal_tables
from hpc_tumor.results.tables.notes import weights
from hpc_tumor.results.write.collect import collect_runs, group_runs
from hpc_tumor.results.write.files import write_tables
from hpc_tumor.run_dir import RunDir
from hpc_tumor.system import atomic
from hpc_tumor.table import Table

DICE = [(0.9, 0.8, 0.7), (0.5, 0.6, 0.7), (1.0, 0.9, 0.8)]


@pytest.fixture
def comparison(tmp_path: Path) -> Comparison:
    runs = tmp_path / "runs"
    return collect_runs(
        [
            segmentation_run(runs, "20250101-120000-unet-aaaaaa", DICE, model="attention-unet"),
            segmentation_run(runs, "20250101-120000-unet-bbbbbb", DICE, seed=0),
            segmentation_run(runs, "20250101-120000-unet-cccccc", DICE[:1] + DICE[:2], seed=1),
            segmentation_run(runs, "20250101-120000-unet-dddddd", DICE, split="published", split_leaks=True),
            classification_run(runs, "20250101-120000-cnn-eeeeee", [True] * 39 + [False], device="cpu"),
            unfinished_run(runs, "20250101-120000-unet-ffffff", state="training", epoch=7, epochs=20, best=0.81),
            RunDir(runs / "absent"),
        ],
        {"20250101-120000-unet-ffffff": ("running", "no heartbeat for 12 min")},
    )


def written(comparison: Comparison, output: Path, name: str) -> Path:
    """The file of that name, of all that are written."""
    return next(path for path in write_tables(comparison, output) if path.name == name)


def cells(table: Table, row: int) -> dict[str, str]:
    return dict(zip((column.title for column in table.columns), table.rows[row], strict=True))


def test_only_published_figures_stand_aside(comparison: Comparison) -> None:
    for group in comparison.groups:
        for name in ("results", "cost"):
            table = group_tables(group)[name]
            aside = {row[0] for place, row in enumerate(table.rows) if place in table.aside}
            assert aside == {row[0] for row in table.rows if ": published" in row[0]} != set()


def test_terminal_tables_by_hand(comparison: Comparison) -> None:
    classification, segmentation, leaking, unfinished, skipped = terminal_tables(comparison)
    split = "split deduplicated (no duplicates across parts)"
    assert classification.title.startswith(f"Classification · a.zarr 0123456789ab · {split}")
    first = cells(classification, 0)
    assert first["model"] == "cnn"
    assert (first["train %"], first["test %"], first["last %"], first["conf. %"]) == ("99.9", "97.5", "96.5", "90.0")
    assert (first["publ.† %"], first["GPUs"], first["time"], first["params"]) == ("99.0", "4 CPU", "13 min", "5.5 M")
    low, high = (float(end) for end in first["95 % CI"].split("–"))
    assert low < 97.5 <= high <= 100

    assert [row[0] for row in segmentation.rows] == ["unet, 2 seeds", "  seed 0", "  seed 1", "attention-unet"]
    mean = (2.3 / 3 + 2.2 / 3) / 2
    assert cells(segmentation, 0)["Dice"] == f"{mean:.3f}"
    assert cells(segmentation, 0)["± sd (seeds)"] == f"± {(2.3 - 2.2) / 3 / math.sqrt(2):.3f}"
    assert cells(segmentation, 3)["± sd (seeds)"] == "–"
    assert cells(segmentation, 3)["95 % CI"] == "0.600–0.900"
    # Over patients, of their means over the seeds: 0.8, 0.7, 0.75.
    assert cells(segmentation, 0)["95 % CI"] == "0.700–0.800"
    assert (cells(segmentation, 3)["publ.†"], cells(segmentation, 3)["ET"]) == ("0.924", "0.733")
    assert "(leaks)" in leaking.title
    assert any("too high" in note and "This split leaks" in note for note in leaking.notes)
    assert not any("This split leaks" in note for note in segmentation.notes)
    assert any(note.startswith("† Published results") and "leaks" in note for note in segmentation.notes)
    assert unfinished.rows == (
        ("20250101-120000-unet-ffffff", "unet", "7/20", "Dice 0.810", "running: no heartbeat for 12 min"),
    )
    assert skipped.rows[0][0].endswith("absent")


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_terminal_tables_fit(comparison: Comparison, width: int) -> None:
    for table in terminal_tables(comparison, width)[:3]:
        assert table.width <= width
        titles = [column.title for column in table.columns]
        assert titles[0] == "model"
        assert {"Dice", "test %"} & set(titles)
        assert any(title.startswith("publ.") for title in titles)
        assert "95 % CI" in titles
        assert {"WT", "ET"} & set(titles) in (set(), {"WT", "ET"})  # all of them or none
        left_out = [note for note in table.notes if note.startswith("Hidden columns")]
        complete = next(full for full in terminal_tables(comparison, 1000) if full.title == table.title)
        assert len(left_out) == (len(titles) < len(complete.columns))
        assert not left_out or width < 200
        assert table.notes[:1] == tuple(left_out) or not left_out


def test_runs_tested_on_other_cases_are_marked(tmp_path: Path) -> None:
    same = [segmentation_run(tmp_path, model, DICE, model=model) for model in ("unet", "improved-unet")]
    (table,) = terminal_tables(collect_runs(same))
    assert not any("different sets of cases" in note for note in table.notes)
    assert [row[0] for row in table.rows] == ["unet", "improved-unet"]
    other = segmentation_run(tmp_path, "c", DICE * 2, model="attention-unet")
    (table,) = terminal_tables(collect_runs([*same, other]))
    assert any("2 different sets of cases" in note and "attention-unet" in note for note in table.notes)
    assert "3–6 test patients" in table.title


def test_files(comparison: Comparison, tmp_path: Path) -> None:
    output = tmp_path / "new" / "results"
    paths = write_tables(comparison, output)
    assert [path.name for path in paths] == [
        "cases.csv", "comparison-long.csv", "comparison.csv", "comparison.json", "comparison.md", "comparison.tex",
    ]  # fmt: skip
    assert sorted(output.iterdir()) == paths
    before = [path.read_bytes() for path in paths]
    write_tables(comparison, output)
    assert [path.read_bytes() for path in paths] == before


def test_csv(comparison: Comparison, tmp_path: Path) -> None:
    rows = list(csv.DictReader(written(comparison, tmp_path, "comparison.csv").open(encoding="utf-8", newline="")))
    kinds = [row["kind"] for row in rows]
    assert (kinds.count("run"), kinds.count("unfinished"), kinds.count("published")) == (5, 1, 7)
    by_run = {row["run"]: row for row in rows if row["run"]}
    assert by_run["20250101-120000-unet-ffffff"]["state"] == "running"
    assert float(by_run["20250101-120000-unet-ffffff"]["val_best"]) == 0.81
    for result in comparison.results:
        row = by_run[result.run]
        for name, value in result.best.items():
            assert float(row[f"best_{name}"]) == value
        assert float(row["gpu_hours"]) == 0.84
        assert row["split_leaks"] == str(result.split_leaks)
    published = {row["model"]: row for row in rows if row["kind"] == "published"}
    assert (published["unet"]["best_dice"], published["unet"]["split_leaks"]) == ("0.861", "True")


def test_json(comparison: Comparison, tmp_path: Path) -> None:
    values = json.loads(written(comparison, tmp_path, "comparison.json").read_text(encoding="utf-8"))
    assert values["schema"] == 3
    assert [len(group["runs"]) for group in values["groups"]] == [1, 3, 1]
    seeds, alone = values["groups"][1]["entries"]
    assert seeds["runs"] == ["20250101-120000-unet-bbbbbb", "20250101-120000-unet-cccccc"]
    assert alone["runs"] == ["20250101-120000-unet-aaaaaa"]
    assert (seeds["seeds"], seeds["sd_over"], alone["sd_over"]) == ([0, 1], "seeds", None)
    assert values["groups"][1]["ranking"]["entries"] == [seeds["name"], alone["name"]] == ["unet", "attention-unet"]
    interval = values["groups"][0]["entries"][0]["statistics"]["accuracy"]
    assert interval["low"] < interval["mean"] == 0.975 <= interval["high"]
    assert interval["n"] == 40
    assert (len(values["published"]), len(values["unfinished"]), len(values["skipped"])) == (7, 1, 1)


def test_markdown(comparison: Comparison, tmp_path: Path) -> None:
    text = written(comparison, tmp_path, "comparison.md").read_text(encoding="utf-8")
    assert text.count("\n## ") == 5
    assert text.count("\n### Cost") == text.count("\n### Runs") == 3
    assert text.count("\n### Paired tests") == text.count("\n### Ranks") == 1
    assert "unet: published (leaking split)" in text
    assert "cnn: published (leaking split)" in text
    assert "WT" in text
    assert "alexnet" not in text  # no run of it stands beside
    check_tables(text)


def check_tables(text: str) -> None:
    """Every row of every table has as many unescaped bars as its header."""
    for block in text.split("\n\n"):
        bars = {
            line.replace("\\\\", "").replace("\\|", "").count("|") for line in block.splitlines() if line[:1] == "|"
        }
        assert len(bars) <= 1


def test_hostile_names(tmp_path: Path) -> None:
    names = [
        "a|b`<script>alert(1)</script>",
        "=cmd|' /C calc'!A0",
        'quo"te,\nnew',
        "back\\",
        "@sum",
        "[x](http://y) *z*",
    ]
    runs = [
        segmentation_run(tmp_path / str(index), name.replace("/", "∕"), DICE, model=name, store=name)
        for index, name in enumerate(names)
    ]
    comparison = collect_runs([*runs, RunDir(tmp_path / "|gone|")])
    assert len(comparison.results) == len(names)
    text = written(comparison, tmp_path / "out", "comparison.md").read_text(encoding="utf-8")
    check_tables(text)
    assert "<script>" not in text
    assert "[x](" not in text.replace("\\[x\\](", "")
    for path in (tmp_path / "out").glob("*.csv"):
        rows = list(csv.reader(path.open(encoding="utf-8", newline="")))
        assert len({len(row) for row in rows}) == 1
        assert not any(cell[:1] in ("=", "+", "-", "@") for row in rows for cell in row if not is_number(cell))
    assert all("\n" not in cell for table in terminal_tables(comparison) for row in table.rows for cell in row)


def is_number(cell: str) -> bool:
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return False


def test_runs_without_scores_and_no_runs_at_all(tmp_path: Path) -> None:
    run = segmentation_run(tmp_path / "runs", "r", DICE)
    values = json.loads(run.result.read_text())
    values["best"]["test"] = {"dice": math.nan}
    values["last"] = None
    run.result.write_text(json.dumps(values))
    (table,) = terminal_tables(collect_runs([run]))
    assert {"Dice", "last", "95 % CI"}.isdisjoint(cells(table, 0))  # columns without a figure are left out
    assert any("result.json has no dice; no interval" in note for note in table.notes)
    write_tables(collect_runs([run]), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "comparison.json").read_text())["groups"][0]["runs"][0]["best"] == {
        "dice": None
    }
    assert terminal_tables(collect_runs([])) == []
    write_tables(collect_runs([]), tmp_path / "empty")
    assert "No finished runs" in (tmp_path / "empty" / "comparison.md").read_text()


def test_output_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    for output in (tmp_path / "out", tmp_path / "out" / "deeper"):
        with pytest.raises(UsageError, match="out is not a folder"):
            write_tables(Comparison(), output)
    assert (tmp_path / "out").read_text() == "mine"


@settings(deadline=None)
@given(
    score=st.floats(0, 1),
    seconds=st.floats(0, 1e9),
    text=st.text(st.characters(categories=["L", "N", "P", "S", "Zs"]), min_size=1, max_size=30),
)
def test_csv_round_trips(tmp_path_factory: pytest.TempPathFactory, score: float, seconds: float, text: str) -> None:
    folder = tmp_path_factory.mktemp("trip")
    result = made_result(text, score, seconds)
    comparison = Comparison(groups=group_runs([result]))
    text_of_file = written(comparison, folder, "comparison.csv").read_text(encoding="utf-8")
    row = next(row for row in csv.DictReader(io.StringIO(text_of_file, newline="")) if row["kind"] == "run")
    assert row["run"].removeprefix("'" if text[0] in "=+-@" else "") == text
    assert float(row["best_dice"]) == score
    assert float(row["seconds"]) == seconds
    assert row["gpus"] == ""


def made_result(run: str, score: float, seconds: float) -> RunResult:
    values: dict[str, object] = dict.fromkeys(RunResult.__dataclass_fields__)
    values |= {"run": run, "path": run, "task": "segmentation", "model": "unet", "split": "by-patient", "store": run}
    values |= {"seconds": seconds, "best": {"dice": score}, "last": {}, "last_train": {}}
    values |= {"config": {}, "cases": TestCases(problem="no cases.csv")}
    return RunResult(**{**values, "settings": "", "remarks": ()})  # type: ignore[arg-type]


def test_titles_of_groups_name_what_is_not_known() -> None:
    (group,) = group_runs([made_result("r", 0.5, 1.0)])
    assert isinstance(group, Group)
    assert group.title == "Segmentation · r · split by-patient (leakage unknown) · unknown test patients"


@pytest.mark.parametrize(
    ("number", "exit_code", "says"), [(errno.ENOSPC, 1, "the disk is full"), (errno.EROFS, 2, "read-only")]
)
def test_a_disk_that_refuses_leaves_the_earlier_files(
    comparison: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, exit_code: int, says: str
) -> None:
    write_tables(Comparison(), tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    real = atomic.write_bytes

    def refuse(path: Path, data: bytes) -> None:
        if path.suffix == ".md":
            raise OSError(number, os.strerror(number), str(path))
        real(path, data)

    monkeypatch.setattr(atomic, "write_bytes", refuse)
    for output in (tmp_path / "out", tmp_path / "new" / "deeper"):
        with pytest.raises(HpcTumorError, match=f"{output}: .*{says}") as caught:
            write_tables(comparison, output)
        assert caught.value.exit_code == exit_code
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ([], "the best epoch; last: weights of the last epoch"),
        (["val dice"], "the best epoch (chosen by val dice); last: weights of the last epoch"),
        (["last epoch"], "the last epoch (there was no validation part)"),
        (
            ["last epoch", "val dice"],
            "the best epoch (chosen by val dice), or of the last epoch where there was no validation part;"
            " last: weights of the last epoch",
        ),
    ],
)
def test_whose_weights_were_tested(chosen: list[str], words: str) -> None:
    assert weights(chosen) == words
