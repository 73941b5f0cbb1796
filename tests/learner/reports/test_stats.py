"""`dcpo stats`: the tables of a run's prompts, and its pass rates over time."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pyarrow import csv, parquet

from dcpo_async.config import RunConfig
from learner.reports.stats import main
from learner.reports.stats_files import pass_rate_shares
from learner.starts import write_start
from tests.learner.small_run import make_config, make_intake, train


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return make_config(tmp_path / "run", groups_per_step=1, max_lag=0)


@pytest.fixture
def run(config: RunConfig) -> Path:
    """A run of one prompt with three visits; its learner has gone."""
    intake = make_intake(config, num_prompts=1)
    train(intake, [(1.0, 0.0)], [(1.0, 1.0)], [(0.0, 0.0)])
    intake.ledger.close()
    return config.folder


def test_a_prompts_row_has_its_exact_statistics_and_its_last_visit(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(run), "--out", str(tmp_path / "stats")])
    table = parquet.read_table(tmp_path / "stats" / "prompts.parquet")
    assert table.to_pylist() == [
        {
            "prompt_id": "prompt-0",
            "problem": "problem 0",
            "answer": "0",
            "visits": 3,
            "count": 6,
            "mean": 0.5,
            "std": pytest.approx(0.5477225575),
            "last_reward": 0.0,
            "last_step": 2,
            "last_version": 3,
            "judgement": "",
        }
    ]
    assert csv.read_csv(tmp_path / "stats" / "prompts.csv").column("mean").to_pylist() == [0.5]
    assert (tmp_path / "stats" / "pass_rates.png").read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out.startswith("1 prompts, 3.0 visits each; mean reward 0.500; never right 0.0%")


def test_prompts_that_rest_are_shown_with_the_visits_that_were_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = {"selection": "pass_rate", "selection_bound": 0.45}
    config = make_config(tmp_path / "run", groups_per_step=1, max_lag=0, data=data)
    intake = make_intake(config, num_prompts=3)
    write_start(intake.ledger, config.model_dump(mode="json"), "1.0", datetime.now(UTC))
    # Two visits of three prompts, all right; then one of the three alone, since enough prompts are visited.
    train(intake, *[[(1.0, 1.0)]] * 7)
    intake.ledger.close()
    main([str(config.folder)])
    assert "\njudged: 3 solved, 0 hopeless; 2 visits were passed over\n" in capsys.readouterr().out
    assert csv.read_csv(config.folder / "stats" / "prompts.csv").column("judgement").to_pylist() == ["solved"] * 3


def test_tables_stand_in_the_run_folder_unless_another_is_named(run: Path) -> None:
    main([str(run)])
    assert sorted(path.name for path in (run / "stats").iterdir()) == [
        "pass_rates.png",
        "prompts.csv",
        "prompts.parquet",
    ]


@pytest.mark.parametrize(
    ("rewards", "num_windows", "shares"),
    [
        ([0, 1, 1, 1], 2, [[0.5, 0, 0, 0, 0, 0.5], [0, 0, 0, 0, 0, 1]]),
        ([0.25, 0.3, 0.75, 0.8], 1, [[0, 0.25, 0.25, 0.25, 0.25, 0]]),
        ([1], 40, [[0, 0, 0, 0, 0, 1]]),
        ([-0.5, 1], 1, [[0.5, 0, 0, 0, 0, 0.5]]),
    ],
)
def test_shares_of_pass_rates(rewards: Sequence[float], num_windows: int, shares: list[list[float]]) -> None:
    assert pass_rate_shares(rewards, num_windows) == shares


def test_a_folder_without_a_counted_group_is_refused_in_one_line(
    config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_intake(config).ledger.close()
    for folder, complaint in ((config.folder, "no group has been counted yet"), (tmp_path / "none", "no such file")):
        with pytest.raises(SystemExit) as ended:
            main([str(folder)])
        message = capsys.readouterr().err
        assert (ended.value.code, message.count("\n")) == (2, 1)
        assert complaint in message
