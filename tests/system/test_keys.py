"""Keys by the commands that make them: who has them works, and who has them no more gets nothing from any router."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.system.services import Services

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


def dcpo(*words: str) -> str:
    argv = [sys.executable, "-m", "dcpo_async.commands.cli", *words]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True).stdout


def test_an_actor_works_by_its_own_keys_until_they_are_revoked(tmp_path: Path, model: Path) -> None:
    keys = tmp_path / "keys"
    assert f"dcpo keygen {keys} --actor NAME" in dcpo("keygen", str(keys))
    said = dcpo("keygen", str(keys), "--actor", "node-1", "--evaluator", "watcher")
    assert f"actor node-1 is admitted; move {keys}/peers/node-1.keys to its machine" in said
    with Services(tmp_path, model) as services:
        learner = services.start_learner("--keys", str(keys), "--training.max_steps", "1000")
        services.until("the learner", lambda: "actors reach it at" in learner.log)
        actor = services.start_actor("--keys", str(keys / "peers" / "node-1.keys"))
        services.until("a step", lambda: "step 1: " in learner.log)
        assert "actor node-1/" in learner.log
        dcpo("revoke", str(keys), "node-1")
        services.until("its end", lambda: "lost: the key of actor node-1 is no longer admitted" in learner.log)
        server = tmp_path / "run" / "logs" / "weight_server.log"
        services.until("its end there", lambda: "actor node-1 is no longer admitted by its key" in server.read_text())
        services.until("no other connection", lambda: "the key of node-1 is revoked" in learner.log)
        actor.process.kill()
        actor.process.wait()
        watcher = services.start_actor("--keys", str(keys / "peers" / "watcher.keys"))
        services.services.remove(watcher)
        assert watcher.process.wait(100) == 2
        line = "hello as actor: the key of watcher is for the role evaluator, which does not send it"
        assert line in watcher.log
        assert learner.log.count(line) == 1
