"""Copies of versions by a process of their own: it can be ended at any moment, and says why there is none."""

import asyncio
import time
from pathlib import Path

import psutil
import pytest

from dcpo_async.errors import WeightsError
from dcpo_async.evaluation.copying import copied
from dcpo_async.weights.places import version_folder
from dcpo_async.weights.store import verify
from tests.adapters.made import AdapterRun


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> AdapterRun:
    made = AdapterRun(tmp_path_factory.mktemp("run"))
    made.publish_base(1)
    made.publish_adapter(2, 1)
    return made


def child() -> psutil.Process:
    """The process that copies, once it is there."""
    while True:
        for process in psutil.Process().children():
            if "dcpo_async.evaluation.copying" in process.cmdline():
                return process
        time.sleep(0.01)


async def test_whoever_is_told_to_end_does_not_wait_for_a_copy_that_hangs_and_the_next_one_is_whole(
    run: AdapterRun, tmp_path: Path
) -> None:
    version, writing = version_folder(run.store, 2), tmp_path / ".writing-best"
    writing.mkdir()
    (writing / "config.json").write_text("left by one that was killed")
    copying = asyncio.create_task(copied(version, writing, tmp_path / "log"))
    process = await asyncio.to_thread(child)
    process.suspend()
    copying.cancel()
    await asyncio.wait({copying}, timeout=60)
    assert copying.cancelled()
    assert not process.is_running()
    await copied(version, writing, tmp_path / "log")
    assert (verify(writing).weights_version, verify(writing).base_version) == (2, None)


async def test_a_copy_that_cannot_be_made_is_told_in_a_line(run: AdapterRun, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=f"no copy of {tmp_path}: no weights manifest in {tmp_path}"):
        await copied(tmp_path, tmp_path / "best", tmp_path / "log")
