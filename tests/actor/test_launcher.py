"""What the launcher of a machine does about engines that end."""

import asyncio
import logging
import sys
from pathlib import Path

import pytest

from actor.launcher import _keep_engine
from dcpo_async.errors import ConfigError, EngineError
from dcpo_async.supervision import Child


def engine(folder: Path, name: str, program: str) -> Child:
    return Child(
        name=name,
        argv=lambda: [sys.executable, "-c", program],
        log_file=folder / f"{name}.log",
        has_progressed=lambda seconds: False,
        failed=lambda code: "its groups are refused",
        max_failures=1,
        error=EngineError,
        grace_seconds=5,
    )


async def test_an_engine_that_is_given_up_ends_no_other_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    given_up, stopping = list[EngineError](), asyncio.Event()
    sick = engine(tmp_path, "sick", "import sys; sys.exit(3)")
    well = engine(tmp_path, "well", f"open({str(tmp_path / 'worked')!r}, 'w').close()")
    async with asyncio.TaskGroup() as tasks:
        for child in (sick, well):
            tasks.create_task(_keep_engine(child, stopping, given_up))
    assert (tmp_path / "worked").exists()
    assert [str(error).splitlines()[0] for error in given_up] == [
        f"sick failed 2 times in a row: its groups are refused; the end of {tmp_path / 'sick.log'}:"
    ]
    assert "sick; it is given up, the other engines of this machine go on" in caplog.text


async def test_what_no_new_start_helps_ends_all_engines(tmp_path: Path) -> None:
    refused = engine(tmp_path, "refused", "import sys; sys.exit(2)")
    with pytest.raises(ConfigError):
        await _keep_engine(refused, asyncio.Event(), [])
