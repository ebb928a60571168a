"""The page of a run as docs/report.md shows it, its upper part, in the Chromium that the system has (`make pictures`).

.venv-browser/bin/python benchmarks/page_picture.py --run=runs/demo --out=docs/pictures/report.png
"""

import argparse
import pathlib
import shutil
import sys

from playwright import sync_api

WIDTH, HEIGHT, SCALE = 1180, 1900, 0.8


def main():
    parser = argparse.ArgumentParser(description="A picture of a run's page.")
    parser.add_argument("--run", required=True, type=pathlib.Path, help="a work folder with report.html")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="a .png")
    chosen = parser.parse_args()
    page, browser = chosen.run / "report.html", shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        sys.exit("error: there is no Chromium; apt-get install chromium.")
    if not page.is_file():
        sys.exit(f"error: {page} is not there; `barlow-jax report {chosen.run} --html={page}` writes it.")
    with sync_api.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        shown = opened.new_page(
            viewport={"width": WIDTH, "height": HEIGHT}, device_scale_factor=SCALE, color_scheme="light"
        )
        shown.goto(page.resolve().as_uri())
        shown.wait_for_load_state("networkidle")
        shown.screenshot(path=chosen.out)
        opened.close()


if __name__ == "__main__":
    main()
