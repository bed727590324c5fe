#!/usr/bin/env python3
"""Draw the picture of the demo's report for README and documentation.

    bash tools/demo.sh                 makes demo/results/report.html
    python tools/docs_picture.py       writes docs/images/report.webp: two views of it, in Chromium

The upper view is the result at the top of the page, the lower one the first figure of patients with predicted labels.
"""

from __future__ import annotations

import base64
import io
import sys
from pathlib import Path

from PIL import Image
from selenium import webdriver

CHECKOUT = Path(__file__).parents[1]
REPORT = CHECKOUT / "demo" / "results" / "report.html"
PICTURE = CHECKOUT / "docs" / "images" / "report.webp"
WIDTH, GAP = 920, 8  # pixels: width of the page, and gap between the two views
MOST = 200_000  # bytes


def main() -> None:
    if not REPORT.is_file():
        sys.exit(f"error: there is no {REPORT}: run tools/demo.sh first.")
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for argument in ("--headless=new", "--no-sandbox", "--hide-scrollbars", "--force-color-profile=srgb"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService("/usr/bin/chromedriver"))
    try:
        driver.set_window_size(WIDTH, 1000)
        driver.get(REPORT.as_uri())
        top, figure, height = driver.execute_script(
            "const figure = document.querySelector('figure[id*=-cases-]');"
            "figure.querySelectorAll('img').forEach(image => { image.loading = 'eager' });"
            "const place = figure.getBoundingClientRect(), groups = document.getElementById('group-1');"
            "return [groups.getBoundingClientRect().top, place.top, place.height]"
        )
        views = [view(driver, 0, round(top)), view(driver, figure, round(height))]
    finally:
        driver.quit()
    picture = Image.new("RGB", (WIDTH, sum(each.height for each in views) + GAP), "#888888")
    picture.paste(views[0], (0, 0))
    picture.paste(views[1], (0, views[0].height + GAP))
    PICTURE.parent.mkdir(exist_ok=True)
    picture.save(PICTURE, quality=80, method=6)
    size = PICTURE.stat().st_size
    if size > MOST:
        sys.exit(f"error: {PICTURE} takes {size:,} bytes, more than {MOST:,}: make the views smaller.")
    print(f"{PICTURE.relative_to(CHECKOUT)}: {size / 1000:.0f} kB")


def view(driver: webdriver.Chrome, top: float, height: int) -> Image.Image:
    """Return the part of the page from `top`, WIDTH × `height` pixels."""
    clip = {"x": 0, "y": top, "width": WIDTH, "height": height, "scale": 1}
    found = driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
    return Image.open(io.BytesIO(base64.b64decode(found["data"]))).convert("RGB")


if __name__ == "__main__":
    main()
