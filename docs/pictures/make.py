"""Make the pictures of the documentation: a run of the demo, opened in a headless Chromium.

    python docs/pictures/make.py

The demo is drawn by the program, so the pictures show nothing that is anybody else's.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from tests.browser import Browser  # noqa: E402

from pyimgano.pipelines import run_benchmark  # noqa: E402

#: Bytes of a picture, at most.
MOST_BYTES = 150_000


def main() -> None:
    """Write the pictures beside this file."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        report = run_benchmark(
            dataset="demo",
            root=folder / "demo",
            output_dir=folder / "run",
        )
        with Browser(folder / "browser", width=1200, height=900) as browser:
            browser.open(Path(report["run_dir"]) / "report.html")
            browser.prefer("light")
            _save(browser, "report-light.jpg")
            browser.prefer("dark")
            browser.evaluate("document.querySelectorAll('.legend')[1].scrollIntoView()")  # washer
            browser.evaluate("scrollBy(0, -20)")
            _save(browser, "gallery-dark.jpg")
            browser.click("#category-1 button.pictures")
            _save(browser, "viewer-dark.jpg")


def _save(browser: Browser, name: str) -> None:
    browser.evaluate("new Promise((done) => setTimeout(() => done(1), 500))")  # pictures decode
    for quality in (85, 75, 65, 55):
        data = browser.picture(quality=quality)
        if len(data) <= MOST_BYTES:
            break
    (HERE / name).write_bytes(data)
    print(f"{name}: {len(data)} bytes")


if __name__ == "__main__":
    main()
