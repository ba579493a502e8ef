"""Take a picture of `asmtrain serve`: a file given, its neighbours, source beside assembly.

    python docs/serve.py INDEX FILE [--model FOLDER]

Starts the server, goes through the pages in headless Chromium (Debian: `apt install chromium`) as a person
would, writes docs/images/serve.png and stops the server.
"""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

IMAGE = Path(__file__).parent / "images" / "serve.png"


def main() -> int:
    """Take it; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("index", type=Path, help="folder of the index")
    parser.add_argument("file", type=Path, help="file with one function")
    parser.add_argument("--model", type=Path, help="embedding/ folder that made the index, if it was moved")
    parser.add_argument("--output", type=Path, default=IMAGE)
    parser.add_argument("--dark", action="store_true", help="the dark colours")
    options = parser.parse_args()
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        print("error: this needs chromium", file=sys.stderr)
        return 2
    command = [sys.executable, "-m", "asmtrain.cli", "serve", str(options.index), "--port", "0"]
    command += ["--model", str(options.model)] if options.model else []
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server,
        sync_playwright() as playwright,
    ):
        try:
            assert server.stdout is not None
            address = server.stdout.readline().split()[0]
            chromium = playwright.chromium.launch(executable_path=browser, chromium_sandbox=os.geteuid() != 0)
            page = chromium.new_page(
                viewport={"width": 1400, "height": 1000}, color_scheme="dark" if options.dark else "light"
            )
            go(page, address, options.file)
            options.output.parent.mkdir(exist_ok=True)
            page.screenshot(path=options.output)
            chromium.close()
        finally:
            server.terminate()
    print(options.output)
    return 0


def go(page: Page, address: str, file: Path) -> None:
    """From the form to the neighbours of the file's function."""
    page.goto(address)
    page.get_by_label("A file").set_input_files(file)
    page.get_by_role("button", name="Search").click()
    page.get_by_label("Show").select_option("5")
    page.wait_for_url("**top=5**")
    page.locator("#neighbours").wait_for()


if __name__ == "__main__":
    sys.exit(main())
