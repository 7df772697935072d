"""The wait for nine pictures in the browser: from Enter in the prompt box until all of them are drawn.

    python benchmarks/page.py --split dev                   # the data that the newest run was trained on
    python benchmarks/page.py --gallery DIR --checkpoint DIR

Starts app.py, opens it in Chromium, and asks ten prompts, one after the other, each not asked before.
"""

import re
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import Split, parse
from support.errors import UserError, one_line_errors

ROOT = Path(__file__).resolve().parents[1]
PROMPTS = ("two dogs play in the snow", "a man climbs a rock", "children in a pool", "a woman rides a bicycle",
           "a red car on the road", "people at a party", "a boy jumps", "football players", "a girl on a swing",
           "a sailing boat on the lake")
ALL_DRAWN = """() => { const pictures = [...document.querySelectorAll(".matches img")];
    return pictures.length == 9 && pictures.every(picture => picture.complete && picture.naturalWidth) }"""


@dataclass(frozen=True)
class PageConfig:
    """Time the page's answers."""

    gallery: Path | None = None  # folder of pictures; None: a split of the data trained on
    split: Split | None = None  # split to search without --gallery
    checkpoint: Path | None = None  # model directory; None: best/ of the newest run
    chromium: str = "/usr/bin/chromium"  # the browser


def main(flags):
    from playwright.sync_api import sync_playwright

    given = [part for name in ("gallery", "split", "checkpoint") if (value := getattr(flags, name)) is not None
             for part in (f"--{name}", str(value))]
    command = [sys.executable, str(ROOT / "app.py"), *given, "--port", "0"]
    page = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        said = page.stdout.readline().strip()
        if not (address := re.match(r"http://\S+", said)):
            raise UserError("the page did not start, see above")
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=flags.chromium, args=["--no-sandbox"])
            view = browser.new_page(viewport={"width": 1280, "height": 900})
            view.goto(address[0])
            box, times = view.get_by_label("What should the pictures show?"), []
            for prompt in PROMPTS:
                view.evaluate("document.querySelectorAll('.matches').forEach(matches => matches.remove())")
                box.fill(prompt)
                start = time.perf_counter()
                box.press("Enter")
                view.wait_for_function(ALL_DRAWN)
                times.append(1000 * (time.perf_counter() - start))
            browser.close()
    finally:
        page.terminate()
        page.wait()
    print(f"{said}\n\n| prompts | ms until nine pictures are drawn (median, range) |\n|---|---|\n| {len(times)} "
          f"| {statistics.median(times):.0f} ({min(times):.0f} to {max(times):.0f}) |")


if __name__ == "__main__":
    with one_line_errors():
        main(parse(PageConfig))
