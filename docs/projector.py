"""Take a picture of functions as TensorBoard's projector shows them, coloured by what is known of them.

    asmtrain eval probe --model MODEL --corpus CORPUS --output OUT --projector LOGDIR
    python docs/projector.py LOGDIR --model trained --colours project level isa

Starts the server, opens it in headless Chromium (Debian: `apt install chromium`; package playwright), writes
docs/images/projector.png, one picture a colour below the other, and stops the server.
"""

import argparse
import io
import os
import shutil
import sys
import time
from pathlib import Path

from PIL import Image
from playwright.sync_api import Locator, Page, sync_playwright
from tensorboard import serving, wait_for  # docs/tensorboard.py: Python looks beside a script first

IMAGE = Path(__file__).parent / "images" / "projector.png"
LOAD_S = 180.0
DRAW_MS = 8_000


def main() -> int:
    """Take it; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("logdir", type=Path, help="the folder given as --projector")
    parser.add_argument("--model", default="trained")
    parser.add_argument("--colours", nargs="+", default=["project", "level", "isa"], help="columns")
    parser.add_argument("--output", type=Path, default=IMAGE)
    options = parser.parse_args()
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None or not (options.logdir / "projector_config.pbtxt").is_file():
        print("error: this needs chromium, and a folder that eval probe --projector wrote", file=sys.stderr)
        return 2
    with serving(options.logdir) as address, sync_playwright() as tools:
        wait_for(f"{address}/data/plugin/projector/info?run=.")
        flags = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader"]  # WebGL without a GPU
        flags += ["--no-sandbox"] if os.geteuid() == 0 else []
        chromium = tools.chromium.launch(executable_path=browser, args=flags)
        page = chromium.new_page(viewport={"width": 1300, "height": 600})
        page.goto(f"{address}/data/plugin/projector/projector_binary.html")
        pictures = take(page, options.model, options.colours)
        chromium.close()
    stack(pictures, options.output)
    print(options.output)
    return 0


def take(page: Page, model: str, colours: list[str]) -> list[bytes]:
    """A screenshot a colour, as PNG."""
    panel = page.locator("vz-projector-data-panel")
    until(panel, "panel.tensorNames?.length")
    panel.evaluate("(panel, name) => { panel.selectedTensor = name }", f"{model}:00000")
    until(panel, "panel.colorOptions?.length > 2")
    page.wait_for_timeout(DRAW_MS)
    pictures = []
    for colour in colours:
        panel.evaluate("(panel, name) => { panel.selectedColorOptionName = name }", colour)
        page.wait_for_timeout(DRAW_MS)
        pictures.append(page.screenshot(clip={"x": 0, "y": 0, "width": 1000, "height": 600}))
    return pictures


def until(panel: Locator, condition: str) -> None:
    """Wait until something holds of the panel."""
    end = time.monotonic() + LOAD_S
    while not panel.evaluate(f"panel => Boolean({condition})"):
        if time.monotonic() > end:
            raise TimeoutError(f"the projector has not come to: {condition}")
        time.sleep(0.5)


def stack(pictures: list[bytes], output: Path) -> None:
    """One image of all of them, from top to bottom."""
    images = [Image.open(io.BytesIO(picture)) for picture in pictures]
    whole = Image.new("RGB", (images[0].width, sum(image.height for image in images)))
    for at, image in enumerate(images):
        whole.paste(image, (0, at * image.height))
    output.parent.mkdir(exist_ok=True)
    whole.save(output)


if __name__ == "__main__":
    sys.exit(main())
