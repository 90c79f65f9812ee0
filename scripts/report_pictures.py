"""Take the pictures of the report: ``python scripts/report_pictures.py``, into docs/images/.

Needs Chromium and playwright; pngquant makes the pictures small. The runs are those of a sweep with
the small trained model over the recordings in examples/; `--sweep` takes runs that are there.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from moshi_pipe.cli import main as moshi_pipe

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from support.browser import CHROMIUM  # noqa: E402

if TYPE_CHECKING:
    from playwright.sync_api import Browser

Theme = Literal["dark", "light"]
DESKTOP: Final = (1060, 1730)
PHONE: Final = (390, 1500)
GRID: Final = ("seed=1,2,3", "sampling.temperature=0.4,0.8,1.2")


def main() -> None:
    """Take all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images", help="folder")
    parser.add_argument("--sweep", type=Path, help="folder of runs; none makes them")
    options = parser.parse_args()
    from playwright.sync_api import sync_playwright

    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as made, sync_playwright() as playwright:
        sweep = options.sweep or run_sweep(Path(made) / "sweep")
        page = Path(made) / "report.html"
        moshi_pipe(
            ["report", str(sweep), f"out={page}", "title=Three temperatures of a small model"]
        )
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        picture(browser, page, options.out / "report-light.png", DESKTOP, "light")
        picture(browser, page, options.out / "report-phone.png", PHONE, "light")
        picture(browser, page, options.out / "report-talk-dark.png", DESKTOP, "dark", ".talk")
        browser.close()


def run_sweep(folder: Path) -> Path:
    """Let the small model answer the recordings in examples/, with each value of the grid."""
    words = ["-m", "model=nano", f"source.path={ROOT / 'examples'}", "tail_s=3", *GRID]
    moshi_pipe([*words, f"output_dir={folder}"])
    return folder


def picture(
    browser: Browser, page: Path, path: Path, size: tuple[int, int], theme: Theme, part: str = ""
) -> None:
    """Take one, of the page's beginning or of a part of it, and make it small."""
    width, height = size
    tab = browser.new_page(viewport={"width": width, "height": height}, color_scheme=theme)
    tab.goto(page.as_uri())
    tab.wait_for_timeout(300)
    if part:
        tab.locator(part).nth(1).screenshot(path=path)
    else:
        tab.screenshot(path=path)
    tab.close()
    pngquant = shutil.which("pngquant")
    if pngquant:
        small = [pngquant, "--force", "--ext", ".png", "--quality", "80-98", "--strip"]
        subprocess.run([*small, str(path)], check=True)


if __name__ == "__main__":
    main()
