"""The public surface: exactly these names, with these signatures, and what a run folder is read as."""

import inspect
from importlib.resources import files
from pathlib import Path

import pytest

from dcpo_async import api
from dcpo_async.api import Run, algorithm, grade, load_config, read_run
from dcpo_async.errors import ConfigError
from tests.comparison.made_runs import line, measured, write_evaluation, write_run

SURFACE = {
    "DcpoError": None,
    "Run": ["run_id", "folder", "settings", "status", "metrics", "evaluations"],
    "RunConfig": None,
    "Verdict": ["correct", "extracted", "reason"],
    "algorithm": None,
    "grade": ["response_text", "reference_answer", "extraction"],
    "load_config": ["files", "overrides"],
    "read_run": ["folder"],
}
ALGORITHM = {
    "clip_bounds": ["old_logprobs", "epsilon_low", "epsilon_high", "max_ratio"],
    "smooth_advantages": ["rewards", "stats", "ddof"],
    "policy_loss": [
        *("policy_logprobs", "old_logprobs", "advantages", "token_weights", "epsilon_low", "epsilon_high", "max_ratio"),
        "importance_weights",
    ],
}


def test_the_surface_is_what_it_was() -> None:
    assert set(api.__all__) == SURFACE.keys()
    for name, parameters in SURFACE.items():
        if parameters is not None:
            assert list(inspect.signature(getattr(api, name)).parameters)[: len(parameters)] == parameters, name
    for name, parameters in ALGORITHM.items():
        assert list(inspect.signature(getattr(algorithm, name)).parameters) == parameters, name


@pytest.mark.parametrize("package", ["dcpo_async", "actor", "learner"])
def test_types_can_be_seen_from_outside(package: str) -> None:
    assert files(package).joinpath("py.typed").is_file()


def test_every_name_of_the_algorithm_can_be_had() -> None:
    assert {name for name in algorithm.__all__ if getattr(algorithm, name) is None} == set()
    with pytest.raises(AttributeError, match="no attribute 'no_such_loss'"):
        algorithm.no_such_loss  # noqa: B018


def test_what_the_surface_offers_works() -> None:
    assert grade(r"so \boxed{1/2}", "0.5").correct
    assert load_config(Path("grpo"), ["--seed=3"]).seed == 3
    advantages, stats = algorithm.smooth_advantages([1, 0, 0, 0], algorithm.RewardStats())
    assert (advantages, stats.visits) == ([1.5, -0.5, -0.5, -0.5], 1)


def test_a_run_is_read_as_tables(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "one", [line(1, reward=0.25), line(2, reward=0.5, other=3.0)], seed=7)
    models = {"v1": measured("run-one", 1, 0.6), "base": measured(None, None, 0.2)}
    write_evaluation(folder / "evaluation", models)
    run = read_run(str(folder))
    assert isinstance(run, Run)
    assert (run.run_id, run.settings["seed"], run.status["step"]) == ("run-one", 7, 2)
    assert run.metrics.column("reward").to_pylist() == [0.25, 0.5]
    assert run.metrics.column("other").to_pylist() == [None, 3.0]
    rows = run.evaluations.select(["model", "step", "set", "mode", "accuracy", "low"]).to_pylist()
    assert rows[0] == {"model": "v1", "step": 1, "set": "sums", "mode": "sampled", "accuracy": 0.6, "low": 0.5}
    assert rows[1]["step"] is None
    assert list(run.metrics.to_pandas()["step"]) == [1, 2]
    with pytest.raises(ConfigError, match=r"`dcpo stats .*one` writes it"):
        run.prompts  # noqa: B018


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="name the folder of a run"):
        read_run(tmp_path)
