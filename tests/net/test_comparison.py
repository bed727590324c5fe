"""A comparison of made-up runs: every file that collect writes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from made_runs import case_pictures, full_classification_run, full_segmentation_run, unfinished_run, write_curves
from recording import Command, compare, digest, mask, plain


@pytest.fixture
def runs(work: Path) -> None:
    """Two seeds of one network and one of another for each task, with curves and pictures, and one unfinished run."""
    folder = work / "runs"
    for seed, model in enumerate(("unet", "unet", "attention-unet")):
        run = full_segmentation_run(folder, f"20260101-000000-{model}-00000{seed}", model, seed, patients=6)
        write_curves(run, "segmentation")
    case_pictures(run, case="patient-0-000")
    for seed, model in enumerate(("cnn", "cnn", "vit")):
        run = full_classification_run(folder, f"20260101-000000-{model}-00001{seed}", model, seed, images=16)
        write_curves(run, "classification")
    unfinished_run(folder, "20260101-000009-unet-000020", epoch=2, epochs=5)


@pytest.mark.slow
def test_every_file_of_a_comparison(command: Command, work: Path, runs: None) -> None:
    code, out, errors = command(["collect", "--output", "results"])
    assert code == 0, errors
    compare("comparison/terminal.txt", out + errors)
    places = {str(work): "WORK", str(work.parent): "HOME"}
    files = sorted(path for path in (work / "results").rglob("*") if path.is_file())
    compare("comparison/files.txt", "\n".join(str(path.relative_to(work / "results")) for path in files))
    for path in files:
        if path.suffix in (".csv", ".json", ".md", ".tex") and path.parent.name == "results":
            text = path.read_text(encoding="utf-8")
            text = plain(json.loads(text)) if path.suffix == ".json" else text
            compare(f"comparison/{path.name}", mask(text, places))
    compare(
        "comparison/report.html", mask(page((work / "results" / "report.html").read_text(encoding="utf-8")), places)
    )
    figures = [f"{path.name}\n{drawing(path.read_text(encoding='utf-8'))}" for path in files if path.suffix == ".svg"]
    compare("comparison/figures.txt", "\n\n".join(figures))


def page(html: str) -> str:
    """A page without the pictures in it, and with the digest of its style and behaviour."""
    html = re.sub(r"<svg\b.*?</svg>", "<svg/>", html, flags=re.DOTALL)
    html = re.sub(r"data:[a-z]+/[a-z]+;base64,[A-Za-z0-9+/=]+", "data:…", html)

    def shortened(found: re.Match[str]) -> str:
        return f"{found[1]}… {len(found[2].splitlines())} lines, sha256 {digest(found[2].encode())} …{found[3]}"

    return re.sub(r"(<(?:style|script)\b[^>]*>)(.{200,}?)(</)", shortened, html, flags=re.DOTALL)


def drawing(svg: str) -> str:
    """The texts of a drawing, in their order; where they stand depends on the library and the fonts."""
    return " | ".join(re.findall(r"<text[^>]*>([^<]+)</text>", svg))
