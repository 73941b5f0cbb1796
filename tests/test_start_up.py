"""What answers at once stays cheap: a word of help, a refusal or a look at a run imports nothing that takes seconds."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {"torch", "transformers", "deepspeed", "vllm", "datasets", "pandas", "matplotlib", "sympy", "math_verify"}
"""Each takes from a third of a second to several seconds of processor time."""
RUN = """
import json, sys
sys.argv = {argv!r}
from {module} import main
code = 0
try:
    main()
except SystemExit as end:
    code = end.code
print("\\n" + json.dumps([code, sorted({heavy!r} & sys.modules.keys())]))
"""


def outcome(module: str, *words: str) -> tuple[int, list[str]]:
    """Exit code of a command, and which heavy packages it has imported until then."""
    program = RUN.format(module=module, argv=[module, *words], heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    code, imported = json.loads(done.stdout.splitlines()[-1])
    return code or 0, imported


@pytest.mark.parametrize(
    ("module", "words", "code"),
    [
        ("learner.launcher", ["--help"], 0),
        ("learner.launcher", ["--training.learning_rat", "3"], 2),
        ("learner.launcher", ["--training.learning_rate", "-3"], 2),
        ("learner.launcher", ["no-such.toml"], 2),
        ("learner.launcher", ["--learning_rate", "1e-5"], 2),
        ("learner.launcher", ["--version"], 0),
        ("learner.launcher", ["grpo", "--dry-run", "--workers", "1"], 0),
        ("learner.reports.show", ["--help"], 0),
        ("learner.reports.show", ["no-such-run"], 2),
        ("learner.reports.release", ["--help"], 0),
        ("learner.life.asking", ["set", "no-such-run", "seed=3"], 2),
        ("learner.life.asking", ["stop", "no-such-run"], 2),
        ("learner.life.history", ["no-such-run"], 2),
        ("learner.life.backup", ["no-such-run", "--to", "backup"], 2),
        ("learner.life.restore", ["no-such-backup", "--check"], 2),
        ("learner.life.fork", ["no-such-run", "fork", "--step", "3"], 2),
        ("learner.reports.stats", ["--help"], 0),
        ("learner.reports.stats", ["no-such-run"], 2),
        ("actor.evaluation.__main__", ["--help"], 0),
        ("actor.evaluation.__main__", ["MODEL"], 2),
        ("actor.launcher", ["--help"], 0),
        ("actor.launcher", ["--gpus", "3-1"], 2),
        ("actor.launcher", ["--relay-listen", "tcp://10.0.0.7:5560"], 2),
        ("actor.launcher", ["--no-relay", "--relay-mbps", "3"], 2),
        ("actor.launcher", ["--weights-from", "10.0.0.7"], 2),
        ("actor.weights.relay", ["--listen", "tcp://10.0.0.7:5560", "--offer", "relay.offer"], 2),
        ("learner.weights.server", ["--listen", "tcp://10.0.0.7:5560", "--store", "weights", "--run-id", "run"], 2),
        ("dcpo_async.commands.cli", ["--help"], 0),
        ("dcpo_async.commands.cli", ["--version"], 0),
        ("dcpo_async.commands.cli", ["compare", "--help"], 0),
        ("dcpo_async.commands.cli", ["status", "no-such-run"], 2),
        ("dcpo_async.commands.cli", ["settings"], 0),
        ("dcpo_async.commands.cli", ["doctor"], 0),
        ("dcpo_async.commands.cli", ["frobnicate"], 2),
    ],
)
def test_nothing_heavy_is_imported_for(module: str, words: list[str], code: int) -> None:
    assert outcome(module, *words) == (code, [])


def test_nothing_heavy_is_imported_to_tell_what_a_run_is_doing(tmp_path: Path) -> None:
    status = {"run_id": "run-1", "step": 3, "max_steps": 9, "weights_version": 4, "groups_counted": 6}
    (tmp_path / "status.json").write_text(json.dumps({**status, "actors_connected": []}))
    (tmp_path / "metrics.jsonl").write_text('{"step": 3, "reward": 0.5}\n')
    assert outcome("dcpo_async.commands.cli", "status", str(tmp_path)) == (3, [])
