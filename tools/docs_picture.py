#!/usr/bin/env python3
"""Picture of the demo's report for README and the documentation.

bash tools/demo.sh                 makes demo/results/report.html
python tools/docs_picture.py       writes docs/images/report.webp: the first screen of it, in Debian's Chromium
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

CHECKOUT = Path(__file__).parents[1]
REPORT = CHECKOUT / "demo" / "results" / "report.html"
PICTURE = CHECKOUT / "docs" / "images" / "report.webp"
WINDOW = (1200, 1000)  # pixels
MOST = 200_000  # bytes


def main() -> None:
    if not REPORT.is_file():
        sys.exit(f"error: there is no {REPORT}: run tools/demo.sh first.")
    with tempfile.TemporaryDirectory() as folder:
        screen = Path(folder, "screen.png")
        subprocess.run(
            [
                "chromium", "--headless=new", "--no-sandbox", "--hide-scrollbars", "--force-color-profile=srgb",
                f"--window-size={WINDOW[0]},{WINDOW[1]}", f"--screenshot={screen}", REPORT.as_uri(),
            ],
            check=True, capture_output=True, timeout=120,
        )  # fmt: skip
        PICTURE.parent.mkdir(exist_ok=True)
        Image.open(screen).convert("RGB").save(PICTURE, quality=80, method=6)
    size = PICTURE.stat().st_size
    if size > MOST:
        sys.exit(f"error: {PICTURE} takes {size:,} bytes, more than {MOST:,}: make the window smaller.")
    print(f"{PICTURE.relative_to(CHECKOUT)}: {size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
