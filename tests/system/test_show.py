"""`dcpo show` beside a learner that runs, and behind one that was killed."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from learner.reports.show import main
from tests.system.services import Services

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


WORDS = ("--json", "--step", "2", "--count", "4")


def shown(run: Path) -> str:
    argv = [sys.executable, "-m", "dcpo_async.commands.cli", "show", str(run), *WORDS]
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=100, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


def test_groups_are_read_while_the_learner_trains_and_after_it_was_killed(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Services(tmp_path, model) as services:
        learner = services.start_learner("--lag.max_lag", "1")
        services.start_actor("--tokens-per-second", "160")
        services.until_step(2)
        during = shown(services.run)
        groups = [json.loads(line) for line in during.splitlines()]
        assert [group["step"] for group in groups] == [2] * 4
        for group in groups:
            assert group["problem"] == f"{int(group['reference']) // 2}+{int(group['reference']) // 2 + 1}="
            # The scripted engine says the reference answer, or that plus 1.
            for response in group["responses"]:
                assert response["answer"] == group["reference"] + ("" if response["correct"] else "+1")
                assert sum(segment["num_tokens"] for segment in response["segments"]) == response["num_tokens"]
        assert services.ledger("SELECT value FROM meta WHERE key = 'incarnation'") == [("1",)]
        services.until_step(len(services.metrics()) + 1)
        learner.signal(signal.SIGKILL)
        learner.process.wait(10)
        assert (services.run / "ledger" / "ledger.sqlite-wal").stat().st_size > 0
        main([str(services.run), *WORDS])
        assert capsys.readouterr().out == during
