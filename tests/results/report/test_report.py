"""The report in a real browser: quiet, sortable, whole at every width, and never a place for other people's scripts."""

from __future__ import annotations

import json
import threading
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, Page
from made_runs import (
    case_pictures,
    classification_run,
    config_of,
    full_classification_run,
    image_pictures,
    segmentation_run,
    seven_models,
    unfinished_run,
    write_curves,
)

from hpc_tumor.results.report.document import render_report
from hpc_tumor.results.report.serve import ReportServer
from hpc_tumor.results.write.collect import collect_runs
from hpc_tumor.results.write.files import write_results
from hpc_tumor.run_dir import RunDir, find_runs

HOSTILE = ["<script>window.hacked = 1</script>\"'>", '"><img src=x onerror="window.hacked = 1">', "{{ 7 * 7 }}</style>"]
HEADS = "return [...document.getElementById(arguments[0]).tHead.rows[0].cells].map(c => c.textContent.trim())"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of all networks in three seeds, with learning curves and pictures of the size that real ones have."""
    folder = tmp_path_factory.mktemp("report")
    for run in seven_models(folder / "runs"):
        task = json.loads(run.config.read_text())["task"]
        write_curves(run, task)
        if task == "segmentation":
            case_pictures(run, side=240)
        else:
            image_pictures(run, attention="vit" in run.name, side=128)
    unfinished_run(folder / "runs", "20250101-120000-unet-ffffff", state="training", epoch=7, epochs=20, best=0.81)
    write_results(collect_runs(find_runs(folder / "runs")), folder / "out", folder / "runs")
    return folder / "out" / "report.html"


def column(page: Page, table: str, index: int) -> list[str]:
    """The cells of a column that are shown, from top to bottom."""
    script = (
        "return [...document.getElementById(arguments[0]).tBodies[0].rows].filter(row => !row.hidden)"
        ".map(row => row.cells[arguments[1]].textContent.trim())"
    )
    found: list[str] = page.run(script, table, index)
    return found


def press(page: Page, table: str, index: int) -> str | None:
    """Press the head of a column; how it then says it is sorted."""
    script = (
        "const head = document.getElementById(arguments[0]).tHead.rows[0].cells[arguments[1]];"
        "head.querySelector('button').click(); return head.getAttribute('aria-sort')"
    )
    found: str | None = page.run(script, table, index)
    return found


@pytest.mark.parametrize("offline", [False, True])
def test_it_opens_from_disk_and_asks_for_nothing(browser: Browser, report: Path, offline: bool) -> None:
    assert report.stat().st_size < 10_000_000
    with browser.open_page(report, offline=offline) as page:
        assert page.messages() == []
        assert page.requests() == [report.as_uri()]
        assert "tumours" in page.run("return document.title")
        broken = page.run(
            "document.querySelectorAll('img').forEach(i => i.loading = 'eager');"
            "return Promise.all([...document.images].map(i => i.decode().then(() => null, () => i.alt)))"
            ".then(all => all.filter(Boolean))"
        )
        assert broken == []
        assert page.run("return document.images.length") > 15
        heights = page.run(
            "return [...document.querySelectorAll('figure svg')].map(s => s.getBoundingClientRect().height)"
        )
        assert len(heights) > 5
        assert min(heights) > 40


def test_tables_are_sorted_by_number(browser: Browser, report: Path) -> None:
    with browser.open_page(report) as page:
        table = "group-1-1-results"
        heads = page.run(HEADS, table)
        place = heads.index("accuracy %")
        before = column(page, table, place)
        assert press(page, table, place) == "ascending"
        assert column(page, table, place) == sorted(before, key=float)
        assert press(page, table, place) == "descending"
        assert column(page, table, place) == sorted(before, key=float, reverse=True)
        assert press(page, table, place) is None
        assert column(page, table, place) == before
        # Cells without a number stay at the end, either way.
        lasting = heads.index("last %")
        for _ in range(2):
            press(page, table, lasting)
            cells = column(page, table, lasting)
            assert "–" in cells
            assert cells == [cell for cell in cells if cell != "–"] + ["–"] * cells.count("–")


def test_parameters_and_times_are_sorted_by_what_they_mean(browser: Browser, report: Path) -> None:
    with browser.open_page(report) as page:
        table = page.run("return [...document.querySelectorAll('table')].find(t => t.id.endsWith('-cost')).id")
        heads = page.run(HEADS, table)
        press(page, table, heads.index("parameters"))
        numbers = [int(cell.replace(",", "")) for cell in column(page, table, heads.index("parameters"))]
        assert numbers == sorted(numbers)


def test_filter_hides_rows(browser: Browser, report: Path) -> None:
    with browser.open_page(report) as page:
        table = page.run("return document.querySelector('#group-2 table[id$=-runs]').id")
        everything = column(page, table, 0)
        script = (
            "const field = document.querySelector(`[data-filters='${arguments[0]}']`); field.value = arguments[1];"
            "field.dispatchEvent(new Event('input'))"
        )
        page.run(script, table, "Attention-UNET 001000")
        (left,) = column(page, table, 0)
        assert left == "20250101-120000-attention-unet-001000"
        page.run(script, table, "")
        assert column(page, table, 0) == everything
        assert len(everything) == 9


@pytest.mark.parametrize("width", [360, 900, 1500])
@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_every_width_in_light_and_dark(browser: Browser, report: Path, width: int, dark: bool) -> None:
    with browser.open_page(report, width=width, dark=dark) as page:
        assert page.run("return document.documentElement.scrollWidth") <= width
        image = page.screenshot()
        assert (sum(image.getpixel((2, image.height - 2))) < 200) == dark  # type: ignore[arg-type]
        page.run("document.getElementById('theme').click()")
        image = page.screenshot()
        assert (sum(image.getpixel((2, image.height - 2))) < 200) != dark  # type: ignore[arg-type]


def test_figures_take_the_ink_of_the_page(browser: Browser, report: Path) -> None:
    colour = "return getComputedStyle(document.querySelector('figure svg text')).fill"
    with browser.open_page(report) as page:
        light = page.run(colour)
    with browser.open_page(report, dark=True) as page:
        assert page.run(colour) != light


def test_contents_lead_to_every_section(browser: Browser, report: Path) -> None:
    with browser.open_page(report) as page:
        ids = page.run("return [...document.querySelectorAll('[id]')].map(e => e.id)")
        links = page.run("return [...document.querySelectorAll('nav a')].map(a => a.hash.slice(1))")
        assert len(links) > 10
        assert set(links) <= set(ids)
        assert len(ids) == len(set(ids))


def hostile_runs(runs: Path) -> list[RunDir]:
    made = []
    for index, text in enumerate(HOSTILE):
        config: dict[str, Any] = config_of(text, "segmentation")
        config["recipe"][text] = text
        name, dice = f"run {index} {text}".replace("/", "∕"), [(0.9, 0.8, 0.7), (0.5, 0.6, 0.7)]
        about = dict.fromkeys(("device", "precision", "dataset", "split", "chosen_by", "fingerprint"), text)
        run = segmentation_run(runs, name, dice, model=text, config=config, **about)
        run.provenance.write_text(json.dumps({"host": text, "git": {"commit": text}, "command": [text, text]}))
        made.append(run)
    names = [{"case": text, "correct": 1, "confidence": 0.9, "group": text} for text in HOSTILE]
    run = classification_run(runs, "images", [True] * 3)
    text = "case,correct,confidence,group\n" + "\n".join(f'"{row["case"]}",1,0.9,0' for row in names).replace('""', "'")
    run.cases.write_text(text)
    made.append(run)
    made.append(unfinished_run(runs, f"open {HOSTILE[0]}".replace("/", "∕"), state=HOSTILE[1], reason=HOSTILE[2]))
    return made


def test_texts_from_runs_are_only_text(browser: Browser, tmp_path: Path) -> None:
    runs = hostile_runs(tmp_path / "runs")
    write_results(collect_runs(runs), tmp_path / "out", Path(HOSTILE[0]))
    with browser.open_page(tmp_path / "out" / "report.html") as page:
        assert page.run("return window.hacked") is None
        assert page.messages() == []
        assert page.run("return document.scripts.length") == 1
        assert page.run("return [...document.images].filter(i => !i.src.startsWith('data:')).length") == 0
        shown = page.run("return document.body.textContent")
        assert HOSTILE[0] in shown
        assert HOSTILE[2] in shown


def test_through_a_server_as_through_a_tunnel(browser: Browser, report: Path) -> None:
    with ReportServer(report, 0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        with browser.open_page(server.url) as page:
            assert page.messages() == []
            assert page.requests() == [server.url]
            assert press(page, "group-1-1-results", 1) == "ascending"
        server.shutdown()


def test_no_runs_make_a_report_that_says_so(browser: Browser, tmp_path: Path) -> None:
    page = render_report(collect_runs([]), [], datetime(2025, 1, 1), "runs")
    (tmp_path / "report.html").write_text(page, encoding="utf-8")
    with browser.open_page(tmp_path / "report.html") as opened:
        assert opened.messages() == []
        assert "No run has finished yet" in opened.run("return document.body.textContent")


def test_it_says_how_many_test_images_are_known(tmp_path: Path) -> None:
    run = full_classification_run(tmp_path, "20250101-120000-cnn-000000", "cnn", images=70)
    page = render_report(collect_runs([run]), [], datetime(2025, 1, 1), "runs")
    assert "10 of the test images have an exact or near duplicate in training or validation." in page
