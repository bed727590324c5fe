"""Render a sheet as inline SVG and as PNG; the same sheet gives the same bytes."""

from __future__ import annotations

import io
import re
import warnings
from html import escape
from typing import TYPE_CHECKING, Any

from hpc_tumor.results.figures.canvas.drawing import Drawing, Plan
from hpc_tumor.results.figures.canvas.palette import INK, WHITE_INK
from hpc_tumor.results.figures.canvas.sheet import style
from hpc_tumor.results.figures.canvas.wording import words

if TYPE_CHECKING:
    from hpc_tumor.results.figures.canvas.sheet import Sheet

DPI = 200
MOST_BYTES = 390_000  # of the PNG of a figure made of images
FONTS = "system-ui, 'Helvetica Neue', Helvetica, Arial, 'Liberation Sans', sans-serif"
_TAG = re.compile(r"<[^>]*>")  # text in SVG has no < and attributes no >, since matplotlib escapes both
_SENTINEL = re.compile(re.escape(INK), re.IGNORECASE)
_ID = re.compile(r' id="([^"]*)"')
_USED = re.compile(r'(url\(#|xlink:href="#)([^")]+)')
_COORDINATES = re.compile(r'(?<= )(?:d|x|y|points)="[^"]*"')
_LONG_NUMBER = re.compile(r"(\.\d\d)\d+")
_FONT = re.compile(r"'DejaVu Sans'(?:, [\w-]+)*")


def render(plan: Plan, name: str, group: int) -> Drawing:
    """Draw `plan` as a figure with its full `name`."""
    with style(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # glyphs missing from the font of the PNG
        import matplotlib

        matplotlib.rcParams["svg.hashsalt"] = name
        sheet = plan.draw()
        svg = _as_svg(sheet)
        png = _as_png(sheet, plan.raster)
    width, height = round(96 * sheet.width), round(96 * sheet.height)
    return Drawing(
        name, plan.section, group, plan.title, plan.caption, inline(svg, name, plan.title, width, height), png,
        width, height, plan.raster,
    )  # fmt: skip


def inline(svg: str, name: str, title: str, width: int, height: int) -> str:
    """Return matplotlib's SVG without prolog and style sheet (which would apply to the whole page), with unique ids."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>\s*", "", svg, count=1, flags=re.DOTALL)
    used = {target for tag in _TAG.findall(svg) for _, target in _USED.findall(tag)}

    def changed(match: re.Match[str]) -> str:
        tag = _SENTINEL.sub("currentColor", match[0])
        tag = _ID.sub(lambda inner: f' id="{name}-{inner[1]}"' if inner[1] in used else "", tag)
        tag = _USED.sub(rf"\g<1>{name}-\g<2>", tag)
        tag = _FONT.sub(FONTS, tag)
        return _COORDINATES.sub(lambda inner: _LONG_NUMBER.sub(r"\1", inner[0]), tag)

    svg = _TAG.sub(changed, svg).strip()
    view = re.search(r'viewBox="([^"]*)"', svg)
    root = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="{width}"'
        f' height="{height}" viewBox="{view[1] if view else ""}" role="img" aria-label="{escape(words(title, 200))}"'
        ' stroke-linejoin="round" stroke-linecap="butt">'
    )
    return _TAG.sub(lambda _: root, svg, count=1) + "\n"


def in_file(drawing: Drawing) -> str:
    """Return the SVG for a file: dark grey instead of the text colour of a page."""
    return _TAG.sub(lambda tag: tag[0].replace("currentColor", WHITE_INK), drawing.svg)


def _as_svg(sheet: Sheet) -> str:
    file = io.BytesIO()
    nothing: dict[str, Any] = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    sheet.figure.savefig(file, format="svg", metadata=nothing, dpi=DPI)
    return file.getvalue().decode()


def _as_png(sheet: Sheet, small: bool) -> bytes:
    file = io.BytesIO()
    sheet.figure.savefig(file, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    data = file.getvalue()
    return _smaller(data) if small and len(data) > MOST_BYTES else data


def _smaller(data: bytes) -> bytes:
    """Reduce a PNG to 256 colours, or fewer if it is still too large."""
    from PIL import Image

    picture = Image.open(io.BytesIO(data)).convert("RGB")
    for colours in (256, 64, 24, 8):
        file = io.BytesIO()
        picture.quantize(colours, dither=Image.Dither.NONE).save(file, format="png", optimize=True, dpi=(DPI, DPI))
        if len(file.getvalue()) <= MOST_BYTES:
            break
    return file.getvalue()
