"""The figures of a comparison: all that can be drawn is, as safe SVG and as PNG, the same every time."""

from __future__ import annotations

import io
import json
import logging
import math
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from made_runs import (
    CLASSES,
    case_pictures,
    classification_run,
    config_of,
    full_classification_run,
    full_segmentation_run,
    image_pictures,
    segmentation_run,
    write_curves,
    write_image_cases,
    write_region_cases,
)
from PIL import Image

from hpc_tumor.results.compare.comparison import Comparison
from hpc_tumor.results.compare.measures import Measure
from hpc_tumor.results.figures import PLANNERS, Drawing, draw_figures, write_figures
from hpc_tumor.results.figures.canvas.palette import INK
from hpc_tumor.results.figures.canvas.rowed import cases_note, limits
from hpc_tumor.results.figures.canvas.scales import log_ticks
from hpc_tumor.results.figures.canvas.sheet import apart
from hpc_tumor.results.figures.canvas.wording import short_number, words, wrapped
from hpc_tumor.results.figures.confusion import plan_calibration, plan_confusion
from hpc_tumor.results.figures.distributions import plan_distributions
from hpc_tumor.results.figures.history import mean_curve, read_history
from hpc_tumor.results.figures.overlays import window_of
from hpc_tumor.results.figures.pictures import read_pictures
from hpc_tumor.results.figures.tradeoffs import KNOWN
from hpc_tumor.results.write.collect import collect_runs
from hpc_tumor.run_dir import RunDir

HOSTILE = "<script>患者 & $\\frac{1}{2 ]]></script> мозг " + "long " * 60 + "\x1b[31m\u202e"
DICE = [(0.9, 0.8, 0.7), (0.5, 0.6, 0.7), (1.0, 0.9, 0.8), (0.2, 0.1, 0.0)]
SVG = "{http://www.w3.org/2000/svg}"
XLINK = "{http://www.w3.org/1999/xlink}href"


def drawn(comparison: Comparison) -> list[Drawing]:
    """All figures; one that fails fails the test."""
    failed: list[logging.LogRecord] = []
    log = logging.getLogger("hpc_tumor.results.figures")
    log.addFilter(failed.append)
    try:
        return draw_figures(comparison)
    finally:
        log.removeFilter(failed.append)
        assert not failed, failed[0].getMessage()


def segmenter(runs: Path, name: str, model: str, seed: int = 0, case: str = "patient-0", **values: object) -> RunDir:
    run = segmentation_run(
        runs,
        name,
        DICE,
        model=model,
        seed=seed,
        gflop_per_sample=3.0,
        best_epoch=4,
        config=config_of(model, "segmentation", seed),
        **values,
    )
    write_region_cases(run, DICE)
    write_curves(run, "segmentation")
    case_pictures(run, case)
    return run


def classifier(
    runs: Path, name: str, model: str, correct: Sequence[bool], classes: Sequence[str] = CLASSES, **values: object
) -> RunDir:
    counts = {part: {label: 12 + place for place, label in enumerate(classes)} for part in ("train", "val", "test")}
    run = classification_run(runs, name, correct, model=model, class_counts=counts, **values)
    write_image_cases(run, correct, classes)
    write_curves(run, "classification")
    image_pictures(run, classes, attention=model == "vit")
    return run


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    runs = tmp_path_factory.mktemp("runs")
    right = [place % 5 > 0 for place in range(40)]
    return collect_runs([
        segmenter(runs, "20250101-120000-unet-aaaaaa", "unet"),
        segmenter(runs, "20250101-120000-unet-bbbbbb", "unet", seed=1),
        segmenter(runs, "20250101-120000-attention-unet-cccccc", "attention-unet"),
        classifier(runs, "20250101-120000-cnn-dddddd", "cnn", right, seed=0),
        classifier(runs, "20250101-120000-cnn-eeeeee", "cnn", [*right[1:], True], seed=1),
        classifier(runs, "20250101-120000-vit-ffffff", "vit", [*right[2:], False, True]),
    ])  # fmt: skip


@pytest.fixture(scope="module")
def drawings(comparison: Comparison) -> list[Drawing]:
    return drawn(comparison)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> list[Drawing]:
    runs = tmp_path_factory.mktemp("hostile")
    classes = [f'{HOSTILE[:40]}{place} {INK} url(#a) id="b"' for place in range(4)]
    return drawn(collect_runs([
        segmenter(runs, "20250101-120000-unet-aaaaaa", HOSTILE, case=HOSTILE),
        segmenter(runs, "20250101-120000-unet-bbbbbb", f"$x$ {HOSTILE[::-1]}", store=HOSTILE, dataset=HOSTILE),
        segmenter(runs, "20250101-120000-unet-cccccc", "$\\frac{", case="$^$"),
        classifier(runs, "20250101-120000-cnn-dddddd", "cnn", [True, False] * 10, classes),
        classifier(runs, "20250101-120000-cnn-eeeeee", HOSTILE, [True, True] * 10, classes),
    ]))  # fmt: skip


def texts(drawing: Drawing) -> str:
    return " ".join("".join(element.itertext()) for element in ElementTree.fromstring(drawing.svg).iter(f"{SVG}text"))


def test_every_section_is_drawn(drawings: list[Drawing]) -> None:
    assert "$" not in "".join(one.svg for one in drawings)  # of matplotlib's own ticks
    assert [one.group for one in drawings] == sorted(one.group for one in drawings)
    by_task = {task: {one.section for one in drawings if one.name.startswith(task)} for task in ("segm", "class")}
    assert by_task["segm"] == set(PLANNERS) - {"confusion", "calibration", "mistakes", "filters", "data"}
    assert by_task["class"] == set(PLANNERS) - {"cases"}
    assert len({one.name for one in drawings}) == len(drawings)
    for one in drawings:
        assert re.fullmatch("[a-z0-9-]+", one.name)
        assert one.title
        assert one.caption.endswith((".", ".)"))
    order = [(one.group, list(PLANNERS).index(one.section)) for one in drawings]
    assert order == sorted(order)


@pytest.mark.parametrize(
    ("seeds", "folds", "over"), [((0, 1), (None,), "seeds"), ((0,), (0, 1), None), ((0, 1), (0, 1), "seeds")]
)
def test_values_of_a_patient_are_means_over_seeds_and_not_over_folds(
    tmp_path: Path, seeds: Sequence[int], folds: Sequence[int | None], over: str | None
) -> None:
    made = [
        full_segmentation_run(tmp_path, f"20250101-120000-unet-{seed}{fold}", "unet", seed, 6, fold)
        for seed in seeds
        for fold in folds
    ]
    (group,) = collect_runs(made).groups
    for plan in plan_distributions(group):
        assert plan.caption.partition(" Means over ")[2] == (f"{over}." if over else "")


def test_an_entry_without_predictions_is_not_left_out_for_its_score(tmp_path: Path) -> None:
    """It has the best score of all, so that the others are not the best of the entries."""
    made = [
        full_classification_run(tmp_path, "20250101-120000-cnn-aaaaaa", "cnn"),
        full_classification_run(tmp_path, "20250101-120000-vit-bbbbbb", "vit"),
        classification_run(tmp_path, "20250101-120000-vgg16-cccccc", [True] * 300, model="vgg16"),
    ]
    for group in collect_runs(made).groups:
        for plan in (*plan_confusion(group), *plan_calibration(group)):
            assert "Only the best" not in plan.caption


def test_what_figures_say(drawings: list[Drawing]) -> None:
    named = {one.name: one for one in drawings}
    assert "nearest neighbour" in texts(named["classification-1-scores-accuracy"])
    assert "published (leaking split)" in texts(named["segmentation-2-scores-dice"])
    assert "n = 4 patients" in named["segmentation-2-scores-dice"].caption
    assert "HD95, mm" in texts(named["segmentation-2-scores-all"])
    assert "patient-0, slice 71 · Dice 0.800" in texts(named["segmentation-2-cases-1-unet"])
    assert "glioma → meningioma" in texts(named["classification-1-mistakes-1-cnn"])
    assert {name for name, one in named.items() if one.section == "attention"} == {
        "classification-1-attention-2-vit-samples", "classification-1-attention-2-vit-wrong",
        "segmentation-2-attention-1-unet", "segmentation-2-attention-2-attention-unet",
    }  # fmt: skip
    assert {one.section for one in drawings if one.raster} == {"cases", "attention", "mistakes", "filters", "samples"}


@pytest.mark.slow
def test_svg_is_safe_inline(drawings: list[Drawing], hostile: list[Drawing]) -> None:
    seen: set[str] = set()
    for one in drawings:
        ids = re.findall(r'<[^>]* id="([^"]*)"', one.svg)
        assert all(name.startswith(f"{one.name}-") for name in ids)
        assert len(set(ids)) == len(ids)
        assert not seen & set(ids)
        seen |= set(ids)
    for one in (*drawings, *hostile):
        root = ElementTree.fromstring(one.svg)
        assert one.svg.startswith("<svg")
        assert (root.get("width"), root.get("height")) == (str(one.width), str(one.height))
        own = {element.get("id") for element in root.iter()}
        for element in root.iter():
            assert element.tag.removeprefix(SVG) in {
                "svg", "g", "path", "text", "tspan", "use", "defs", "clipPath", "rect", "image",
            }  # fmt: skip
            link = element.get(XLINK)
            assert link is None or link.startswith("data:image/png;base64,") or link.removeprefix("#") in own
            assert not [name for name in element.keys() if name.startswith("on")]  # noqa: SIM118
            for value in element.attrib.values():
                assert INK not in value or element is root
                for target in re.findall(r"url\(#(.*?)\)", value):
                    assert element is root or target in own
        assert (
            any("currentColor" in (element.get("style") or "") for element in root.iter()) or one.section == "filters"
        )


@pytest.mark.slow
def test_hostile_names_are_text(hostile: list[Drawing]) -> None:
    assert {one.section for one in hostile} == set(PLANNERS)
    whole = " ".join(texts(one) for one in hostile)
    assert "<script>" in whole
    assert "$\\frac{" in whole
    assert "患者" in whole
    assert not any(c in whole for c in "\x1b\u202e")


@pytest.mark.parametrize("text", [HOSTILE, "", "\n", "a" * 500, "a, b " * 50, None, "\ud800"])
def test_words_are_short_and_printable(text: object) -> None:
    assert 1 <= len(words(text, 30)) <= 30
    assert words(text, 30).isprintable()
    lines = wrapped(text, 20).split("\n")
    assert len(lines) <= 2
    assert all(1 <= len(line) <= 20 for line in lines)


def test_png_is_as_large_as_said(drawings: list[Drawing]) -> None:
    for one in drawings:
        with Image.open(io.BytesIO(one.png)) as picture:
            picture.load()
            assert picture.format == "PNG"
            for pixels, css in zip(picture.size, (one.width, one.height), strict=True):
                assert pixels == pytest.approx(css * 200 / 96, abs=3)
            corner = picture.convert("RGB").getpixel((0, picture.height - 1))
            assert one.raster or corner == (255, 255, 255)
        assert not one.raster or len(one.png) < 400_000


@pytest.mark.slow
def test_png_of_large_images_stays_small(tmp_path: Path) -> None:
    run = segmenter(tmp_path, "20250101-120000-unet-aaaaaa", "unet")
    case_pictures(run, side=240)  # of noise, which no PNG makes smaller
    found = [one for one in drawn(collect_runs([run])) if one.raster]
    assert len(found) == 4
    assert all(len(one.png) < 400_000 for one in found)


@pytest.mark.slow
def test_same_runs_same_bytes(comparison: Comparison, drawings: list[Drawing]) -> None:
    assert drawn(comparison) == drawings


@pytest.mark.slow
def test_a_figure_that_fails_is_left_out(
    comparison: Comparison, drawings: list[Drawing], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from hpc_tumor.results import figures

    real = figures.render

    def broken(plan: object, name: str, group: int) -> Drawing:
        if name == "segmentation-2-tradeoffs":
            raise RuntimeError("no ink")
        return real(plan, name, group)  # type: ignore[arg-type]

    monkeypatch.setattr(figures, "render", broken)
    monkeypatch.setattr(figures.ranks.Ranking, "n", property(lambda self: 1 / 0), raising=False)
    left = {one.name for one in draw_figures(comparison)}
    missing = {one.name for one in drawings} - left
    assert "segmentation-2-tradeoffs" in missing
    assert "segmentation-2-tradeoffs is left out: RuntimeError: no ink" in caplog.text
    assert all("ranks" in name or "tradeoffs" in name for name in missing)


def _torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def _flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3 : len(data) // 3 + 400] = b"\xff" * 400
    path.write_bytes(bytes(data))


def _lzma(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("about.npy", ABOUT)
    data = bytearray(path.read_bytes())
    data[55:65] = b"\xff" * 10
    path.write_bytes(data)


def _with(path: Path, **members: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)


def _npy(value: object, shape: str | None = None) -> bytes:
    file = io.BytesIO()
    np.save(file, np.asarray(value))
    data = file.getvalue()
    return data if shape is None else data.replace(b"(4, 8, 8)", shape.encode())


ABOUT = _npy(json.dumps({"format": "hpc-tumor pictures 1", "cases": []}))


@pytest.mark.parametrize(
    "harm",
    [
        _torn,
        _flipped,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"PK\x03\x04" + b"\0" * 100),
        lambda path: _with(path, about=_npy("[1")),
        lambda path: _with(path, about=_npy('{"format": "other"}')),
        lambda path: _with(path, about=ABOUT, best_images=_npy(np.zeros((4, 8, 8), np.uint8), "(9999999999999999, 1)")),
        lambda path: _with(path, about=ABOUT, best_images=b"\x80\x04K\x01."),
        lambda path: _with(path, about=ABOUT, best_images=_npy(np.zeros((4, 8, 8), np.str_), f"({10**30},)")),
        lambda path: _with(path, about=ABOUT, best_images=_npy(np.zeros((4, 8, 8), np.uint8), "(4,((((")),
        _lzma,
        lambda path: np.savez(path, about=np.array({"a": 1}, dtype=object)),
        lambda path: _with(path, about=ABOUT, **{f"a{n}": _npy(np.zeros(2**22)) for n in range(8)}),
    ],
)  # fmt: skip
def test_damaged_pictures_are_left_out(tmp_path: Path, harm: Callable[[Path], object]) -> None:
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    case_pictures(run)
    assert read_pictures(str(run.path)) is not None
    harm(run.pictures)
    assert read_pictures(str(run.path)) is None


@pytest.mark.slow
def test_figures_of_damaged_pictures_are_left_out(tmp_path: Path) -> None:
    run = segmenter(tmp_path, "20250101-120000-unet-aaaaaa", "unet")
    whole = {one.name for one in drawn(collect_runs([run]))}
    _torn(run.pictures)
    left = {one.name for one in drawn(collect_runs([run]))}
    assert {name.split("-")[2] for name in whole - left} == {"cases", "attention", "samples"}


def test_pictures_that_do_not_fit_each_other(tmp_path: Path) -> None:
    run = segmenter(tmp_path, "20250101-120000-unet-aaaaaa", "unet")
    with np.load(run.pictures) as file:
        arrays = dict(file)
    arrays |= {"best_truth": arrays["best_truth"][:-1], "median_images": arrays["median_images"].astype(np.float32)}
    arrays |= {"worst_truth": np.full_like(arrays["worst_truth"], 255), "attention_1": np.zeros((0, 4), np.uint8)}
    arrays["worst_probabilities"] = arrays["worst_probabilities"][:2]
    arrays["about"] = np.array(json.dumps({"format": "hpc-tumor pictures 1", "cases": {"worst": 3}, "attention": []}))
    np.savez(run.pictures, **arrays)  # type: ignore[arg-type]
    cases = [one for one in drawn(collect_runs([run])) if one.section == "cases"]
    assert [one.name for one in cases] == ["segmentation-1-cases-1-unet"]
    assert "?, slice ? · Dice ?" in texts(cases[0])


def test_what_is_not_there_is_not_drawn(tmp_path: Path) -> None:
    bare = segmentation_run(
        tmp_path, "20250101-120000-unet-aaaaaa", DICE[:1], parameters=None, gpu_hours=None, seconds=None
    )
    bare.cases.unlink()
    found = drawn(collect_runs([bare]))
    assert [one.name for one in found] == ["segmentation-1-scores-dice", "segmentation-1-scores-all"]
    assert draw_figures(Comparison()) == []


def test_known_parameters_are_those_of_the_networks() -> None:
    from hpc_tumor.models import build_model

    for model, counts in KNOWN.items():
        for filters, count in counts.items():
            network = build_model(model, filters=filters)
            assert sum(one.numel() for one in network.parameters() if one.requires_grad) == count


@pytest.mark.slow
def test_many_entries_and_seeds(tmp_path: Path) -> None:
    runs = []
    for place in range(36):
        model, step = ("unet", "improved-unet", "attention-unet")[place % 3], place // 3 % 4
        config = config_of(model, "segmentation", place // 12, recipe={"epochs": 20, "learning_rate": 10**-step})
        run = segmentation_run(
            tmp_path, f"20250101-120000-x-{place:06x}", DICE, model=model, seed=place // 12, config=config
        )
        write_region_cases(run, DICE)
        write_curves(run, "segmentation", epochs=300)
        runs.append(run)
    found = drawn(collect_runs(runs))
    assert {one.section for one in found} == {"scores", "ranks", "curves", "distributions", "tradeoffs"}
    assert sum(len(one.svg) for one in found) < 3e6
    for one in found:
        assert "$" not in one.svg
        for text in ElementTree.fromstring(one.svg).iter(f"{SVG}text"):
            assert 0 <= float(text.get("x") or 1) <= 518.4


def test_files_are_written_and_old_ones_go(drawings: list[Drawing], tmp_path: Path) -> None:
    folder = tmp_path / "results" / "figures"
    paths = write_figures(drawings, folder)
    assert {path.name for path in folder.iterdir()} == {path.name for path in paths}
    assert len(paths) == 2 * len(drawings) + 1
    for one in drawings:
        text = (folder / f"{one.name}.svg").read_text()
        ElementTree.fromstring(text)
        assert "currentColor" not in text
        assert (folder / f"{one.name}.png").read_bytes() == one.png
    (folder / "mine.png").write_bytes(b"mine")
    listed = json.loads((folder / "figures.json").read_text())
    listed["files"] += ["../outside.png", "no", 3]
    (folder / "figures.json").write_text(json.dumps(listed))
    (tmp_path / "results" / "outside.png").write_bytes(b"not ours")
    write_figures(drawings[:1], folder)
    assert {path.name for path in folder.iterdir()} == {
        f"{drawings[0].name}.svg", f"{drawings[0].name}.png", "figures.json", "mine.png",
    }  # fmt: skip
    assert (tmp_path / "results" / "outside.png").exists()


def test_importing_does_not_import_matplotlib() -> None:
    code = "import sys, hpc_tumor.results.figures; print({'matplotlib', 'torch'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("places", [[], [1.0], [1.0, 1.0, 1.0], [3.0, 0.0, 0.1, 0.05, 9.0]])
def test_apart(places: list[float]) -> None:
    moved = apart(places, 0.5)
    gaps = np.diff(sorted(moved))
    assert all(gaps >= 0.5 - 1e-9)
    assert np.argsort(moved, kind="stable").tolist() == np.argsort(places, kind="stable").tolist()
    assert np.mean(moved or [0]) == pytest.approx(np.mean(places or [0]))


@pytest.mark.parametrize(("low", "high"), [(1, 1.01), (0.01, 3e9), (2e5, 6e6), (1e-4, 2e-4), (9, 11)])
def test_ticks_of_logarithms(low: float, high: float) -> None:
    ticks = log_ticks(low, high)
    assert 1 <= len(ticks) <= 6
    assert ticks == sorted(set(ticks))
    assert all(0.99 * low <= tick <= 1.01 * high for tick in ticks)


def test_short_numbers() -> None:
    numbers = (5_496_451, 344_000, 999_999, 12, 0.05)
    assert [short_number(number) for number in numbers] == ["5.5 M", "344 k", "1 M", "12", "0.05"]


# -- where nothing is known -------------------------------------------------------------------------------------------


def test_numbers_of_cases_in_words() -> None:
    def entries(*counts: int | None) -> Any:
        return [SimpleNamespace(n=count) for count in counts]

    assert cases_note(entries(None), "classification") == "n unknown"
    assert cases_note(entries(1, None), "classification") == "n = 1 image"
    assert cases_note(entries(1200, 96), "classification") == "n = 96 to 1,200 images"


def test_an_axis_without_values_has_ends() -> None:
    assert limits([None, math.nan], Measure("Dice")) == (0.0, 1.0)
    assert limits([], Measure("HD95", "mm")) == (0.0, 1.0)


def test_curves_leave_out_lines_that_are_none(tmp_path: Path) -> None:
    lines = [{"epoch": 1, "part": "val", "dice": 0.5}, {"epoch": "x", "part": "val", "dice": 0.1},
             {"epoch": 2, "part": "other", "dice": 0.1}, {"epoch": 2, "part": "val", "dice": None},
             {"epoch": 1, "part": "val", "dice": 0.6}]  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert read_history(tmp_path, ["dice"]).curves == {("val", "dice"): {1: 0.6}}
    assert mean_curve([{}, {1: 0.5, 2: 0.7}, {2: 0.9}]) == {2: pytest.approx(0.8)}
    assert mean_curve([{}]) == {}


def test_black_images_are_shown_whole() -> None:
    assert window_of(np.zeros((2, 5, 7))) == (slice(0, 5), slice(0, 7))
