"""How long each part of the page takes to answer for a long run: `python -m bench.page --visits 1000000`.

With `--browser` also how long Chromium takes until the first view, with its curves, is shown; before all else.
"""

import argparse
import tempfile
import threading
import time
from pathlib import Path
from urllib.request import urlopen

from playwright.sync_api import sync_playwright

from bench.page.long_run import make_run
from dcpo_async.monitoring.server import MonitorServer, WatchedRun
from learner.page.app import page_routes
from learner.page.runs import ServedRun

PARTS = (
    "",
    "api/now",
    "api/curves",
    "api/events",
    "api/prompts",
    "api/pass_rates",
    "api/prompts?search=1234+apples",
    "api/prompts?order=visits&page=300",
    "api/prompt?id=0000000000000123",
)


def main() -> None:
    """Print seconds, and seconds of the processor, of the first and of a second request for each part."""
    parser = argparse.ArgumentParser(prog="bench.page", description=__doc__)
    parser.add_argument("--visits", type=int, default=1_000_000)
    parser.add_argument("--prompts", type=int, default=17_398)
    parser.add_argument("--folder", type=Path, help="of a run that an earlier call has made, or that is kept")
    parser.add_argument("--browser", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch) / "run"
        if not folder.exists():
            make_run(folder, options.visits, options.prompts)
        watched = WatchedRun(folder)
        run = ServedRun("run", folder, watched)
        server = MonitorServer({"run": watched}, "127.0.0.1", 0, None, page_routes({"run": run}))
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        if options.browser:
            print(f"in Chromium: {', again '.join(_opened(address))}")
        for part in PARTS:
            print(f"/{part}: {', again '.join(_asked(f'{address}/{part}'))}")
        server.shutdown()
        thread.join()
        server.server_close()


def _opened(address: str) -> list[str]:
    found = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(args=["--no-sandbox"], executable_path="/usr/bin/chromium")
        for _ in range(2):
            page = browser.new_page()
            began = time.monotonic()
            page.goto(address)
            page.wait_for_selector("main[data-round]")
            found.append(f"{time.monotonic() - began:.2f} s")
            page.close()
    return found


def _asked(address: str) -> list[str]:
    found = []
    for _ in range(2):
        began, used = time.monotonic(), time.process_time()
        with urlopen(address, timeout=600) as answer:
            size = len(answer.read())
        found.append(f"{time.monotonic() - began:.2f} s ({time.process_time() - used:.2f} s of processor), {size} B")
    return found


if __name__ == "__main__":
    main()
