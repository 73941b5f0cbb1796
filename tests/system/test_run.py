"""A run from its start to its end, and what it leaves behind."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from actor.weights.cache import default_cache_folder
from dcpo_async.weights.places import versions
from tests.system.services import Services, assert_counted_once

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

MAX_LAG, NUM_STEPS = 2, 12
KEPT_VERSIONS = 3
WORDS = ("--lag.max_lag", "2", "--training.max_steps", "12", "--checkpoint.interval_steps", "3")
RETENTION = ("--checkpoint.keep_last", "1", "--checkpoint.keep_every_steps", "6")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Services]:
    """A finished run over so few prompts that each is visited several times."""
    with Services(tmp_path_factory.mktemp("whole"), model, num_problems=16) as services:
        learner, actor = services.start_learner(*WORDS, *RETENTION), services.start_actor("--tokens-per-second", "160")
        services.ends_well(learner)
        services.ends_well(actor)
        yield services


def test_the_counts_of_its_problems_are_written_down(run: Services) -> None:
    counts = json.loads((run.run / "data.json").read_text())
    assert (counts["rows"], counts["prompts"], set(counts["left_out"].values())) == (16, 16, {0})


def test_metrics_have_each_step_once(run: Services) -> None:
    assert [line["step"] for line in run.metrics()] == [*range(1, NUM_STEPS + 1)]


def test_every_visit_is_counted_once_and_statistics_equal_a_recount(run: Services) -> None:
    assert_counted_once(run)
    assert run.ledger("SELECT COUNT(*) FROM groups") == [(4 * NUM_STEPS,)]
    assert run.ledger("SELECT COUNT(*), COUNT(DISTINCT step) FROM steps") == [(4 * NUM_STEPS, NUM_STEPS)]
    assert run.ledger("SELECT DISTINCT visits FROM prompt_stats") == [(3,)]


def test_the_exported_model_loads_and_has_learned_something(run: Services, model: Path) -> None:
    exported = AutoModelForCausalLM.from_pretrained(run.run / "export")
    tokenizer = AutoTokenizer.from_pretrained(run.run / "export")
    logits = exported(**tokenizer("1+2=", return_tensors="pt", return_token_type_ids=False)).logits
    assert torch.isfinite(logits).all()
    before = AutoModelForCausalLM.from_pretrained(model).state_dict()
    moved = [not torch.equal(before[name], tensor) for name, tensor in exported.state_dict().items()]
    assert all(moved)


def test_checkpoints_follow_the_retention(run: Services) -> None:
    kept = {path.name for path in (run.run / "checkpoints").iterdir()}
    assert kept == {"step-00000006", "step-00000012"}


def test_weights_versions_only_go_up(run: Services) -> None:
    granted = run.ledger("SELECT weights_version, step FROM versions ORDER BY weights_version")
    numbers, steps = [version for version, _ in granted], [step for _, step in granted]
    assert numbers == [*range(1, len(granted) + 1)]
    # On a busy machine a state may be overtaken by the next before it is published; the first and the last are not.
    assert steps == sorted(set(steps))
    assert (steps[0], steps[-1]) == (0, NUM_STEPS)
    assert run.status()["weights_version"] == numbers[-1]
    adopted = [int(version) for version in re.findall(r"adopted weights version (\d+)", engine_log(run))]
    assert adopted == sorted(set(adopted))
    assert len(adopted) > 0
    stands, newest = versions(run.run / "weights"), numbers[-KEPT_VERSIONS:]
    assert stands[-KEPT_VERSIONS:] == newest
    # What the actor worked with when the last one was published stays too: versions that someone uses are not removed.
    assert set(stands) - set(newest) <= set(adopted[-2:-1])


def test_no_token_is_trained_beyond_max_lag(run: Services) -> None:
    (largest,) = run.ledger("SELECT MAX(s.step - v.weights_step) FROM steps s JOIN visits v USING (position)")[0]
    assert 0 < largest <= MAX_LAG
    assert max(line["lag_mean"] for line in run.metrics()) <= MAX_LAG


def test_the_same_command_on_a_finished_folder_ends_without_training(run: Services) -> None:
    files = [run.run / "metrics.jsonl", run.run / "export" / "model.safetensors"]
    before = [path.read_bytes() for path in files]
    groups = run.ledger("SELECT * FROM groups")
    run.ends_well(run.start_learner(*WORDS, *RETENTION))
    assert [path.read_bytes() for path in files] == before
    assert run.ledger("SELECT * FROM groups") == groups


def test_actors_leave_no_weights_in_shared_memory(run: Services) -> None:
    assert versions(default_cache_folder(run.status()["run_id"])) == []


def engine_log(run: Services) -> str:
    return next(run.folder.glob("actor-*/engine-0.log")).read_text()
