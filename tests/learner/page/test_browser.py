"""The page in a real browser: what it shows is what the ledger says, and a text is never markup."""

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dcpo_async.monitoring.server import MonitorServer, WatchedRun
from learner.page.app import page_routes
from learner.page.runs import ServedRun
from tests.commands.test_status import actor, write_status
from tests.learner.small_run import OpenIntake, make_config, train

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install '.[browser]'")
CHROMIUM = shutil.which("chromium")
EVIL = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"
SLOW_MS = 120_000

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(900),
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    watched = WatchedRun(folder)
    server = MonitorServer(
        {"run": watched}, "127.0.0.1", 0, None, page_routes({"run": ServedRun("run", folder, watched)})
    )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_numbers_are_those_of_the_run_they_follow_it_and_no_text_of_it_is_markup(
    browser: Any, tmp_path: Path, open_intake: OpenIntake
) -> None:
    config = make_config(tmp_path)
    (tmp_path / "config.json").write_text(config.model_dump_json())
    intake = open_intake(config)
    train(intake, [(1.0, 0.0), (0.0, 0.0)], [(1.0, 1.0), (1.0, 0.0)], text=EVIL)
    intake.ledger.commit()
    counted = intake.ledger.num_groups
    write_status(tmp_path, groups_counted=counted, actors_connected=[actor(EVIL, 20.0), actor("slow", 0.3)])
    page = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme="dark")
    page.set_default_timeout(SLOW_MS)
    with serving(tmp_path) as address:
        page.goto(address)
        page.wait_for_selector("main[data-round]")
        assert page.inner_text("[data-fact='groups counted']") == str(counted)
        assert (page.inner_text("#step"), page.inner_text(".pill")) == ("30", "training")
        assert page.locator("#fleet tbody .name").all_inner_texts() == ["slow", EVIL]
        page.evaluate("document.querySelector('#step').dataset.same = 'yes'")
        write_status(tmp_path, step=31, groups_counted=counted)
        page.wait_for_selector("#step:text-is('31')")
        assert page.get_attribute("#step", "data-same") == "yes", "elements stay, their texts change"
        fits(page)

        # By keyboard alone: past the run's name and Now to Prompts, then to the first prompt.
        page.locator("#views a").first.focus()
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        page.wait_for_selector("table.prompts tbody tr")
        rates = page.locator("td[data-label='pass rate']").all_inner_texts()
        assert rates == ["0 %", "50 %", "50 %", "100 %"]
        fits(page)
        page.locator("table.prompts a").first.focus()
        page.keyboard.press("Enter")
        page.wait_for_selector(".visit")
        assert page.locator(".response-text").all_inner_texts() == [EVIL, EVIL]
        assert page.locator(".verdict b").all_inner_texts() == ["✗ wrong", "✗ wrong"]
        assert page.locator("main img, main script").count() == 0
        assert "taken" not in page.title()
        fits(page)
    page.wait_for_selector("#alarm:not([hidden])")
    assert "does not answer" in page.inner_text("#alarm")
    assert page.locator(".response-text").count() == 2, "what was seen last stays"
    page.close()


def fits(page: Any) -> None:
    """Nothing reaches beyond the screen's sides."""
    sizes = json.loads(page.evaluate("JSON.stringify([document.documentElement.scrollWidth, innerWidth])"))
    assert sizes[0] <= sizes[1]
