"""A live run on the page: `python -m bench.page.fleet --out FOLDER`.

Twenty actors with the scripted engine come and go, one of them is slow and one broken; `dcpo serve` shows the run
meanwhile, in Chromium. At the end what stands on the page is compared with the ledger, read by plain SQL.
"""

import argparse
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from playwright.sync_api import sync_playwright

from bench.chaos.services import Fleet
from dcpo_async.demo.services import free_address
from tests.tiny_model import make_tiny_model

NUM_ACTORS = 20
SLOW, BROKEN = ("--tokens-per-second", "3"), ("--tokens-per-second", "60", "--nan-after-groups", "2")
GOOD = ("--tokens-per-second", "60")
WORDS = ("--lag.max_lag", "8", "--checkpoint.interval_steps", "50", "--training.learning_rate", "1e-4")
SIZES = {"wide": (1440, 900), "narrow": (390, 844)}
BETWEEN_JOINS, BETWEEN_EVENTS = 6.0, 8.0
"""Seconds: an actor's start costs several of the processor."""


def main() -> None:
    """Print what the page says of the fleet and of the ledger, and leave pictures."""
    parser = argparse.ArgumentParser(prog="bench.page.fleet", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder that does not exist yet")
    parser.add_argument("--minutes", type=float, default=5.0, help="after all have been started (default 5)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    make_tiny_model(options.out / "model", seed=0)
    of_actor = [("--workers", "1", *more) for more in (SLOW, BROKEN, *((GOOD,) * (NUM_ACTORS - 2)))]
    fleet = Fleet(options.out / "services", options.out / "model", WORDS, "scripted", options.seed, of_actor)
    try:
        with serving(fleet.run) as address, sync_playwright() as driver:
            browser = driver.chromium.launch(args=["--no-sandbox"], executable_path="/usr/bin/chromium")
            happened = live(fleet, options.minutes, random.Random(options.seed))
            page = browser.new_page()
            page.goto(address)
            page.wait_for_selector("main[data-round]")
            print(f"{happened}; {len(fleet.actors)} actors, on the page:")
            for row in page.locator("#fleet tbody tr").all():
                print("  " + " | ".join(" ".join(cell.split()) for cell in row.locator("th, td").all_inner_texts()))
            pictures(browser, address, options.out)
            stop(fleet)
            compare(page, fleet.run / "ledger" / "ledger.sqlite")
    finally:
        fleet.close()


@contextmanager
def serving(run: Path) -> Iterator[str]:
    """`dcpo serve` beside a run that is about to begin; its address."""
    run.mkdir(parents=True)
    host, _, port = free_address().removeprefix("tcp://").rpartition(":")
    argv = [sys.executable, "-m", "learner.page", str(run), "--http", f"{host}:{port}"]
    process = subprocess.Popen(argv)
    address = f"http://{host}:{port}/"
    try:
        until(lambda: answers(address), 60.0)
        yield address
    finally:
        process.terminate()
        process.wait()


def answers(address: str) -> bool:
    """Whether anything answers there."""
    try:
        with urlopen(address, timeout=5):
            return True
    except OSError:
        return False


def until(is_so: Any, seconds: float) -> None:
    """Wait; raises TimeoutError."""
    deadline = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:.0f} s")
        time.sleep(0.2)


def live(fleet: Fleet, minutes: float, draws: random.Random) -> dict[str, int]:
    """Start all, one after another, then let good actors leave, die and come again; returns how often each happened."""
    happened = {"joined": 0, "left": 0, "killed": 0}
    fleet.learner.start(fleet.environment(None))
    for actor in fleet.actors:
        time.sleep(BETWEEN_JOINS)
        actor.start(fleet.environment(None))
    end = time.monotonic() + 60 * minutes
    while time.monotonic() < end:
        time.sleep(BETWEEN_EVENTS)
        actor = draws.choice(fleet.actors[2:])
        if not actor.is_up:
            actor.start(fleet.environment(None))
            happened["joined"] += 1
        elif draws.random() < 0.5:
            assert actor.process is not None
            actor.process.send_signal(signal.SIGTERM)
            happened["left"] += 1
        else:
            actor.kill()
            happened["killed"] += 1
    return happened


def pictures(browser: Any, address: str, out: Path) -> None:
    """Every view, wide and narrow, light and dark."""
    for scheme in ("light", "dark"):
        for name, (width, height) in SIZES.items():
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
            page.goto(address)
            page.wait_for_selector("main[data-round]")
            page.screenshot(path=out / f"{name}-{scheme}.png", full_page=True)
            page.close()


def stop(fleet: Fleet) -> None:
    """End the run, as `dcpo stop` does, and wait for its learner."""
    subprocess.run([sys.executable, "-m", "dcpo_async.commands.cli", "stop", str(fleet.run)], check=True)
    until(lambda: not fleet.learner.is_up, 120.0)


def compare(page: Any, ledger: Path) -> None:
    """Print what page and ledger say of the same; raises SystemExit where they differ."""
    with closing(sqlite3.connect(f"file:{ledger}?mode=ro", uri=True)) as connection:
        (groups,) = connection.execute("SELECT COUNT(*) FROM groups").fetchone()
        rows = connection.execute(
            "SELECT problem, visits, 1e-9 * sum_nano / count FROM prompt_stats JOIN prompts USING (prompt_id)"
        ).fetchall()
    # As the page writes a share: with one digit behind the point, but where that is 0.
    stored = {problem: (str(visits), f"{round(100 * rate, 1):g} %") for problem, visits, rate in rows}
    page.reload()
    page.wait_for_selector("main[data-round]")
    shown = int("".join(filter(str.isdigit, page.inner_text("[data-fact='groups counted']"))))
    print(f"groups counted: {shown} on the page, {groups} in the ledger; {page.inner_text('.pill')}")
    page.locator("#views a", has_text="Prompts").click()
    page.wait_for_selector("table.prompts tbody tr")
    cells = ("td.problem", "td[data-label='visits']", "td[data-label='pass rate']")
    texts = [
        [row.locator(cell).inner_text().strip() for cell in cells]
        for row in page.locator("table.prompts tbody tr").all()
    ]
    wrong = [text for text in texts if stored.get(text[0]) != tuple(text[1:])]
    print(f"visits and pass rates of {len(texts)} prompts of {len(stored)}: {len(wrong)} differ {wrong[:3]}")
    if shown != groups or wrong or not texts:
        raise SystemExit("the page differs from the ledger")


if __name__ == "__main__":
    main()
