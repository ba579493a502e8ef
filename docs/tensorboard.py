"""Take a picture of a run as TensorBoard shows it.

    python docs/tensorboard.py RUN --show 'answers/(loss|valid/perplexity)'

Starts the server, opens it in headless Chromium (Debian: `apt install chromium`), writes
docs/images/tensorboard.png and stops the server.
"""

import argparse
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

IMAGE = Path(__file__).parent / "images" / "tensorboard.png"
START_S = 120.0
DRAW_MS = 40_000
"""Virtual time that the page may take to fetch and draw its charts."""


def main() -> int:
    """Take it; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="the run's folder")
    parser.add_argument("--output", type=Path, default=IMAGE)
    parser.add_argument("--size", default="1500,1300", help="width and height of the window")
    parser.add_argument("--show", default="", help="only the tags that match, a regular expression")
    options = parser.parse_args()
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None or not (options.run / "tb").is_dir():
        print("error: this needs chromium, and a run that has begun", file=sys.stderr)
        return 2
    with serving(options.run / "tb") as address:
        wait_for(f"{address}/data/plugin/scalars/tags")
        page = f"{address}/#scalars&_smoothingWeight=0.4&tagFilter={options.show}"
        take(browser, page, options.output, size=options.size)
    print(options.output)
    return 0


@contextlib.contextmanager
def serving(logdir: Path) -> Iterator[str]:
    """A server while the block runs; yields its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # Its program, and not the module: this file is called as the module is. Its name is shown, so no path.
    program = Path(sys.executable).with_name("tensorboard")
    server = subprocess.Popen(
        [program, f"--port={port}", f"--logdir={logdir.name}", "--load_fast=false"],
        cwd=logdir.resolve().parent,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def wait_for(address: str) -> None:
    """Until the server has read the run's first figures."""
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        with contextlib.suppress(OSError), urllib.request.urlopen(address) as answer:
            if len(answer.read()) > 100:
                return
        time.sleep(0.5)
    raise TimeoutError(f"TensorBoard shows nothing at {address}")


def take(browser: str, page: str, image: Path, *, size: str) -> None:
    """Have the browser draw a page and write it as PNG."""
    image.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as profile:
        subprocess.run(
            [browser, "--headless", "--disable-gpu", "--hide-scrollbars", f"--window-size={size}"]
            + [f"--user-data-dir={profile}", f"--virtual-time-budget={DRAW_MS}", f"--screenshot={image}"]
            + (["--no-sandbox"] if os.geteuid() == 0 else [])
            + [page],
            check=True,
            capture_output=True,
            timeout=300,
        )


if __name__ == "__main__":
    sys.exit(main())
