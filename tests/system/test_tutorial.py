"""docs/tutorial.md walked through as a newcomer does: each command as it stands there, against what is shown."""

import json
import os
import re
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from dcpo_async.metrics.jsonl import read_metrics
from tests.system.services import is_free, two_free_ports
from tests.system.walks import Walk, blocks, commands

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "tutorial.md").read_text()
FIRST, OWN, OTHER = (
    ("A first run",),
    ("Your own problems, your own reward", "What came of it"),
    ("Against another algorithm",),
)


def new_walk(folder: Path) -> Walk:
    """An activated environment and an empty folder, as the page's installation leaves them; ports that are free."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "OMP_"))}
    path = f"{Path(sys.executable).parent}:{environment['PATH']}"
    environment |= {"PATH": path, "PYTHONPATH": str(ROOT), "HOME": str(folder), "COLUMNS": "140"}
    port = two_free_ports()
    page = next(number for number in range(port + 2, port + 200) if is_free(number))
    return Walk(folder / "tutorial", environment, {":5557": f":{port}", ":9557": f":{page}"})


def test_the_installation_is_what_ci_does() -> None:
    setup, *rest = commands(blocks(PAGE))
    assert setup == "make setup"
    assert rest == ["source .venv/bin/activate", "mkdir ~/tutorial", "cd ~/tutorial"]
    makefile = (ROOT / "Makefile").read_text()
    assert "\nfast: setup\n" in makefile
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_every_section_is_a_part_of_a_walk() -> None:
    assert re.findall(r"^## (.*)$", PAGE, re.MULTILINE) == [*FIRST, *OWN, *OTHER]
    walked = len(list(commands(blocks(PAGE)))) + len(list(commands(blocks(PAGE, *FIRST, *OWN, *OTHER))))
    assert walked == len(re.findall(r"^\$ ", PAGE, re.MULTILINE)) > 20


# ---- the demo, and what one sees of it


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the first run has left, with the real vLLM."""
    with new_walk(tmp_path_factory.mktemp("first")) as walk:
        walk.go(blocks(PAGE, *FIRST), seconds=1400)
        return walk.folder / "runs" / "demo"


@pytest.mark.timeout(1500)
def test_the_demo_learns_and_leaves_a_summary_with_the_promised_fields(demo: Path) -> None:
    summary = json.loads((demo / "summary.json").read_text())
    assert summary["accuracy_before"] < 0.35
    assert summary["accuracy_after"] > 0.8
    assert (summary["engine"], summary["steps"], summary["weights_versions"]) == ("vllm", 120, 121)
    assert summary["groups_counted"] >= 120 * 16


def test_the_demo_leaves_metrics_curves_and_a_model_that_loads(demo: Path) -> None:
    assert [step["step"] for step in read_metrics(demo)] == list(range(1, 121))
    assert (demo / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list((demo / "run" / "tensorboard").iterdir())
    checkpoint = json.loads((demo / "summary.json").read_text())["checkpoint"]
    # As a newcomer reads it, from the folder where the command was given.
    AutoModelForCausalLM.from_pretrained(demo.parents[1] / checkpoint)


def test_every_response_carries_the_version_that_vllm_stamped(demo: Path) -> None:
    steps = read_metrics(demo)
    assert all(0 <= step["lag_mean"] <= 4 for step in steps)
    assert all(step["nonfinite_tokens"] == 0 for step in steps)


def test_the_learners_log_probs_agree_with_vllms(demo: Path) -> None:
    # At step 1 both sides have the same weights, so that the ratio shows nothing but their arithmetic.
    first = read_metrics(demo)[0]
    assert abs(first["ratio_mean"] - 1) < 1e-4
    assert first["kl_behavior"] < 1e-8


# ---- own problems


def test_a_run_on_own_problems_with_an_own_reward(tmp_path: Path) -> None:
    with new_walk(tmp_path) as walk:
        walk.go(blocks(PAGE, *OWN), seconds=800)
        before, after = measured(walk.folder / "runs" / "smallest")
    assert before < 0.4
    assert after > 0.5


@pytest.mark.thorough
@pytest.mark.timeout(3000)
def test_a_second_run_beside_the_own_one(tmp_path: Path) -> None:
    with new_walk(tmp_path) as walk:
        walk.go(blocks(PAGE, *OWN, *OTHER), seconds=2900)
        page = (walk.folder / "compare.html").read_text()
    assert "DCPO" in page
    assert "GRPO" in page


def measured(run: Path) -> tuple[float, float]:
    """Shares of right answers of the first and the last version that a run has measured."""
    summary = json.loads((run / "evaluation" / "summary.json").read_text())
    shares = [summary[name]["sets"]["held_out"]["sampled"]["accuracy"]["mean"] for name in sorted(summary)]
    return shares[0], shares[-1]
