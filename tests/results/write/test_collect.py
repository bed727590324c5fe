"""Run directories become one comparison, whatever stands in them."""

import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from made_runs import classification_run, config_of, segmentation_run, unfinished_run, write_rows

from hpc_tumor.results.compare.entries import Entry
from hpc_tumor.results.compare.published import PUBLISHED
from hpc_tumor.results.write.as_json import as_json
from hpc_tumor.results.write.collect import collect_runs
from hpc_tumor.run_dir import RunDir

DICE = [(0.9, 0.8, 0.7), (0.5, 0.6, 0.7), (1.0, 0.9, 0.8)]


def only_entry(run: RunDir) -> Entry:
    """The one entry of the comparison of one run."""
    (group,) = collect_runs([run]).groups
    (entry,) = group.entries
    return entry


def test_result_by_hand(tmp_path: Path) -> None:
    run = segmentation_run(tmp_path, "20250101-120000-unet-aaaaaa", DICE)
    (group,) = collect_runs([run]).groups
    (result,) = group.runs
    assert result.score == pytest.approx((0.8 + 0.6 + 0.9) / 3)
    assert result.best["dice_NCR"] == pytest.approx(0.8)
    assert result.last["dice"] == pytest.approx(result.score - 0.01)
    assert result.last_train["dice"] == 0.95
    assert (result.best_epoch, result.last_epoch, result.gpus, result.parameters) == (18, 20, 4, 5_496_451)
    assert group.title == "Segmentation · a.zarr 0123456789ab · split by-patient (does not leak) · 3 test patients"
    (entry,) = group.entries
    dice = entry.statistics["dice"]
    assert (dice.n, dice.units, dice.sd) == (3, 3, None)
    assert dice.mean == pytest.approx(result.score)
    # The lowest and highest mean that three draws can give; 1 of 27 draws each, so both lie within the 95 %.
    assert (dice.low, dice.high) == pytest.approx((0.6, 0.9))
    assert (dice.q1, dice.median, dice.q3) == pytest.approx((0.7, 0.8, 0.85))
    assert entry.statistics["dice_ET"].mean == pytest.approx(np.mean([0.7, 0.7, 0.8]))


def test_accuracy_by_hand(tmp_path: Path) -> None:
    run = classification_run(tmp_path, "r", [True] * 90 + [False] * 10)
    entry = only_entry(run)
    assert entry.score == 0.9
    interval = entry.statistics["accuracy"]
    assert interval.low is not None
    assert interval.high is not None
    # Binomial: 0.9 ± 1.96 · sqrt(0.9 · 0.1 / 100) = 0.9 ± 0.0588
    assert interval.low == pytest.approx(0.9 - 0.0588, abs=0.012)
    assert interval.high == pytest.approx(0.9 + 0.0588, abs=0.012)


def test_copies_are_drawn_together(tmp_path: Path) -> None:
    correct = [True] * 90 + [False] * 10
    alone = classification_run(tmp_path, "alone", correct)
    grouped = classification_run(tmp_path, "grouped", correct, [str(index // 5) for index in range(100)])
    width = {}
    for run in (alone, grouped):
        interval = only_entry(run).statistics["accuracy"]
        assert interval.low is not None
        assert interval.high is not None
        width[run.name] = interval.high - interval.low
        assert (interval.n, interval.units) == (100, 100 if run is alone else 20)
    # Groups of five equal images: the information of a fifth as many, so sqrt(5) times as wide.
    assert width["grouped"] / width["alone"] == pytest.approx(math.sqrt(5), rel=0.2)


def test_one_test_case_has_no_interval(tmp_path: Path) -> None:
    entry = only_entry(segmentation_run(tmp_path, "r", DICE[:1]))
    assert (entry.statistics["dice"].low, entry.statistics["dice"].high) == (None, None)
    assert entry.runs[0].remarks == ()


def test_order_of_runs_and_cases_changes_nothing(tmp_path: Path) -> None:
    runs = [
        segmentation_run(tmp_path, "b-unet", DICE),
        segmentation_run(tmp_path, "a-unet", DICE[::-1], seed=1),
        classification_run(tmp_path, "c", [True, False, True], ["1", "1", "2"]),
        unfinished_run(tmp_path, "d", state="training", epoch=2),
        RunDir(tmp_path / "nothing"),
    ]
    first = as_json(collect_runs(runs))
    assert all(as_json(collect_runs(order)) == first for order in itertools.permutations(runs))
    assert as_json(collect_runs(runs + runs)) == first
    lines = (tmp_path / "c" / "cases.csv").read_text().splitlines()
    (tmp_path / "c" / "cases.csv").write_text("\n".join([lines[0], *lines[:0:-1]]))
    assert as_json(collect_runs(runs)) == first


def test_unequal_runs_are_not_mixed(tmp_path: Path) -> None:
    runs = [
        segmentation_run(tmp_path, "one", DICE),
        segmentation_run(tmp_path, "other-split", DICE, split="published", split_leaks=True),
        segmentation_run(tmp_path, "other-store", DICE, fingerprint="fedcba"),
        segmentation_run(tmp_path, "other-fold", DICE, fold=1),
        classification_run(tmp_path, "other-task", [True, False]),
    ]
    groups = collect_runs(runs).groups
    assert sorted([run.run for run in group.runs] for group in groups) == sorted([run.name] for run in runs)
    titles = {group.runs[0].run: group.title for group in groups}
    assert "split published (leaks)" in titles["other-split"]
    assert "fold 1" in titles["other-fold"]
    assert len(set(titles.values())) == len(runs)


def test_store_moved_elsewhere_is_the_same_data(tmp_path: Path) -> None:
    runs = [
        segmentation_run(tmp_path, "one", DICE),
        segmentation_run(tmp_path, "two", DICE, store=str(tmp_path / "b.zarr")),
    ]
    assert len(collect_runs(runs).groups) == 1


def test_mean_over_seeds(tmp_path: Path) -> None:
    means = (0.80, 0.84, 0.85)
    runs = [segmentation_run(tmp_path, f"r{seed}", [(mean,) * 3] * 2, seed=seed) for seed, mean in enumerate(means)]
    longer = config_of("unet", "segmentation", seed=3, recipe={"epochs": 100})
    runs.append(segmentation_run(tmp_path, "other-settings", [(0.1,) * 3] * 2, seed=3, config=longer))
    runs.append(segmentation_run(tmp_path, "other-model", [(0.2,) * 3] * 2, model="improved-unet", seed=4))
    (group,) = collect_runs(runs).groups
    entries = {entry.seeds: entry for entry in group.entries}
    assert set(entries) == {(0, 1, 2), (3,), (4,)}
    mean = entries[0, 1, 2]
    assert mean.sd_over == "seeds"
    assert mean.statistics["dice"].mean == pytest.approx(0.83)
    assert mean.statistics["dice"].sd == pytest.approx(np.std(means, ddof=1))
    assert [entries[3,].statistics["dice"].sd, entries[4,].statistics["dice"].sd] == [None, None]


def test_same_seed_again_is_no_second_seed(tmp_path: Path) -> None:
    runs = [segmentation_run(tmp_path, name, DICE) for name in ("first", "second")]
    (group,) = collect_runs(runs).groups
    (entry,) = group.entries
    assert entry.sd_over is None
    assert entry.statistics["dice"].sd is None
    assert [run.run for run in entry.runs] == ["second"]
    assert [run.run for run in entry.repeated] == ["first"]
    assert len(group.runs) == 2


def test_unfinished_runs_have_the_state_that_the_caller_knows(tmp_path: Path) -> None:
    heartbeat = {"epoch": 7, "epochs": 20, "best": 0.81, "best_epoch": 6, "time": 1e6, "reason": "\x1b[31mred"}
    runs = [unfinished_run(tmp_path, name, state="training", **heartbeat) for name in ("waiting", "unasked")]
    unasked, waiting = collect_runs(runs, {"waiting": ("queued", "no free GPU\x1b[2J")}).unfinished
    assert (waiting.state, waiting.reason) == ("queued", "no free GPU\\x1b[2J")
    assert (unasked.state, unasked.reason) == (None, None)
    assert (waiting.epoch, waiting.epochs, waiting.best, waiting.best_epoch) == (7, 20, 0.81, 6)


def test_best_so_far_from_metrics(tmp_path: Path) -> None:
    run = unfinished_run(tmp_path, "r", task="classification", state="stopped", epoch=2)
    lines = [
        {"epoch": 1, "part": "train", "accuracy": 0.99},
        {"epoch": 1, "part": "val", "accuracy": 0.7},
        {"epoch": 2, "part": "val", "accuracy": 0.8},
        {"epoch": 3, "part": "val", "accuracy": None},
    ]
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"epoch": 4, "part": "va')
    (found,) = collect_runs([run]).unfinished
    assert (found.best, found.best_epoch, found.epoch) == (0.8, 2, 3)


def test_foreign_and_damaged_folders(tmp_path: Path) -> None:
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "notes.txt").write_text("hello")
    (tmp_path / "file").write_text("no folder")
    others = RunDir(tmp_path / "others")
    others.path.mkdir()
    others.result.write_text('{"accuracy": 1}')
    torn = unfinished_run(tmp_path, "torn", state="evaluating")
    torn.result.write_text('{"run": "torn", "best": {"ep')
    runs = [RunDir(tmp_path / name) for name in ("foreign", "file", "absent", "others", "torn")]
    comparison = collect_runs(runs)
    assert comparison.groups == ()
    reasons = {item.run: item.reason for item in comparison.skipped}
    assert set(reasons) == {"foreign", "file", "absent", "others"}
    assert "not a run directory" in reasons["foreign"]
    assert "task is None" in reasons["others"]
    (damaged,) = comparison.unfinished
    assert damaged.run == "torn"


def test_scores_that_are_no_numbers(tmp_path: Path) -> None:
    run = segmentation_run(tmp_path, "r", DICE)
    result = json.loads(run.result.read_text())
    result["best"]["test"] |= {"dice": math.nan, "dice_ET": None, "iou": "high", "recall": True, "precision": 10**400}
    result |= {"seconds": math.inf, "parameters": "many", "seed": 1.5, "gpus": None, "last": [], "cases": 7}
    run.result.write_text(json.dumps(result))
    entry = only_entry(run)
    (found,) = entry.runs
    assert found.score is None
    assert all(isinstance(one.mean, float) and math.isfinite(one.mean) for one in entry.statistics.values())
    assert [found.best[name] for name in ("dice_ET", "iou", "recall", "precision")] == [None] * 4
    assert (found.seconds, found.parameters, found.seed, found.gpus, found.last, found.test_cases) == (
        None, None, None, None, {}, None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("cases", "remark"),
    [
        (None, "no cases.csv"),
        ("", "has no test cases"),
        ("case,dice_NCR,dice_ED,dice_ET\na,0.8,0.8,0.8\nb,0.8", "malformed"),
        ("case,dice_NCR,dice_ED,dice_ET\na,0.8,0.8,0.8\n", "1 row for 3 test cases"),
        ("case,dice_NCR,dice_ED,dice_ET\na,.1,.1,.1\nb,.1,.1,.1\nc,.1,.1,.1\n", "mean dice is 0.1000 in cases.csv"),
        ('case,dice_NCR\na,"0.8\n', "cannot be read"),
    ],
)
def test_cases_that_do_not_fit_give_no_interval(tmp_path: Path, cases: str | None, remark: str) -> None:
    run = segmentation_run(tmp_path, "r", DICE)
    run.cases.unlink()
    if cases is not None:
        run.cases.write_text(cases)
    entry = only_entry(run)
    (result,) = entry.runs
    assert result.score == entry.score == pytest.approx(2.3 / 3)
    assert result.cases.values == {}
    assert all(found.low is found.high is found.median is None for found in entry.statistics.values())
    assert remark in result.remarks[0]


def test_times_of_a_run_that_shared_a_gpu_are_remarked(tmp_path: Path) -> None:
    alone, shared = (only_entry(segmentation_run(tmp_path, name, DICE, **more)) for name, more in (
        ("alone", {}), ("shared", {"share": 0.25}),
    ))  # fmt: skip
    assert (alone.runs[0].remarks, len(shared.runs[0].remarks)) == ((), 1)
    assert "shared its GPU with other runs" in shared.runs[0].remarks[0]


def test_hostile_contents_never_crash(tmp_path: Path) -> None:
    odd = [[], {}, "\x1b[31mred\ud800", 1e308, -1, True, None, ["x"], {"a": {"b": []}}]
    run = segmentation_run(tmp_path, "r", DICE)
    original = json.loads(run.result.read_text())
    for key, value in itertools.product(original, odd):
        run.result.write_text(json.dumps({**original, key: value}))
        comparison = collect_runs([run])
        assert len(comparison.results) + len(comparison.skipped) == 1
    run.result.unlink()
    for value in odd:
        run.status.write_text(json.dumps(dict.fromkeys(("state", "epoch", "epochs", "best", "time", "reason"), value)))
        run.events.write_text(json.dumps({"event": value, "time": value}) + "\n" + json.dumps({"event": "failed"}))
        run.metrics.write_text(json.dumps({"epoch": value, "part": value}))
        run.config.write_text(json.dumps(dict.fromkeys(("model", "task", "seed", "recipe", "data"), value)))
        (found,) = collect_runs([run]).unfinished
        assert found.run == "r"


def test_pipe_under_a_known_name_is_not_waited_for(tmp_path: Path) -> None:
    run = unfinished_run(tmp_path, "r", state="training")
    for path in (run.result, run.events, run.metrics):
        os.mkfifo(path)
    assert len(collect_runs([run]).unfinished) == 1


def test_names_that_are_no_utf8_are_shown(tmp_path: Path) -> None:
    run = segmentation_run(tmp_path, os.fsdecode(b"caf\xe9\x1b[2J"), DICE)
    (result,) = collect_runs([run]).results
    assert result.run == "caf\\udce9\\x1b[2J"
    result.path.encode()


def test_part_of_the_data_is_remarked(tmp_path: Path) -> None:
    config = config_of("unet", "segmentation", limit_batches=3)
    counts = {"train": 300, "val": 32, "test": 37}
    entry = only_entry(segmentation_run(tmp_path, "r", DICE, config=config, cases=counts))
    (result,) = entry.runs
    assert "at most 3 batches" in result.remarks[0]
    assert result.test_cases == 3
    assert entry.statistics["dice"].low is not None


def test_cases_as_training_writes_them(tmp_path: Path) -> None:
    metrics = pytest.importorskip("hpc_tumor.training.scoring.metrics")
    histogram = np.random.default_rng(0).integers(0, 50, size=(6, 4, 8))
    histogram[0, 3] = 0  # a patient without enhancing tumour
    run = segmentation_run(tmp_path, "r", DICE * 2)
    result = json.loads(run.result.read_text())
    result["best"]["test"] = metrics.segmentation_scores(histogram)
    run.result.write_text(json.dumps(result))
    write_rows(run.cases, metrics.segmentation_rows(histogram, list("abcdef"), [155] * 6))
    entry = only_entry(run)
    assert entry.runs[0].remarks == ()
    assert set(entry.statistics) == set(result["best"]["test"])
    for name, found in entry.statistics.items():
        assert found.mean == pytest.approx(result["best"]["test"][name])
        assert found.low is not None
        assert found.n == 6


def test_published_figures_are_consistent() -> None:
    assert len(PUBLISHED) == 7
    for result in PUBLISHED.values():
        assert result.split_leaks
        if result.task == "segmentation":
            labels = [result.test[f"dice_{label}"] for label in ("NCR", "ED", "ET")]
            # The published mean is that of the three labels; Dice, of which IoU follows for one region, agrees.
            assert np.mean(labels) == pytest.approx(result.test["dice"], abs=1e-3)
            assert result.test["iou"] == pytest.approx(result.test["dice"] / (2 - result.test["dice"]), abs=3e-3)


def test_collecting_imports_neither_torch_nor_zarr() -> None:
    code = (
        "import sys; import hpc_tumor.results.write.collect, hpc_tumor.results.write.files;"
        "sys.exit(bool({'torch', 'zarr', 'rich', 'pandas'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
