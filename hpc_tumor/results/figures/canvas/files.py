"""Figures in a folder, each as SVG and PNG; what an earlier comparison left there goes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from hpc_tumor.results.figures.canvas.drawing import Drawing
from hpc_tumor.results.figures.canvas.render import in_file
from hpc_tumor.run_dir import folder_to_write, read_json
from hpc_tumor.system import atomic

LIST = "figures.json"  # what was written: nothing else in the folder is ever removed
_OURS = re.compile(r"[a-z0-9-]+\.(svg|png)")


def write_figures(drawings: Sequence[Drawing], folder: Path) -> list[Path]:
    """Write every figure as `<name>.svg` and `<name>.png`, remove those of earlier times, and list them.

    Returns:
        The files, and figures.json, which lists them with their captions.

    Raises:
        UsageError: `folder` cannot be written: not a folder, read-only, no permission.
        HpcTumorError: the disk is full.
    """
    with folder_to_write(folder, "figures"):
        before = _listed(folder)
        names = [f"{drawing.name}.{kind}" for drawing in drawings for kind in ("svg", "png")]
        # Listed before they are written, so that what is cut short is still known as ours the next time.
        _write_list(folder, drawings, sorted({*before, *names}))
        for drawing in drawings:
            atomic.write_text(folder / f"{drawing.name}.svg", in_file(drawing))
            atomic.write_bytes(folder / f"{drawing.name}.png", drawing.png)
        for name in before - set(names):
            (folder / name).unlink(missing_ok=True)
        _write_list(folder, drawings, sorted(names))
    return [*(folder / name for name in names), folder / LIST]


def _listed(folder: Path) -> set[str]:
    """Files in the folder that an earlier call wrote."""
    names = (read_json(folder / LIST) or {}).get("files")
    return (
        {name for name in names if isinstance(name, str) and _OURS.fullmatch(name)}
        if isinstance(names, list)
        else set()
    )


def _write_list(folder: Path, drawings: Sequence[Drawing], files: list[str]) -> None:
    said = [{"name": one.name, "section": one.section, "title": one.title, "caption": one.caption} for one in drawings]
    atomic.write_json(folder / LIST, {"about": "Figures of hpc-tumor collect.", "files": files, "figures": said})
