"""`dcpo release` lists what is quarantined, and lifts it where no learner runs."""

from pathlib import Path

import pytest

from learner.ledger.copy import open_copy
from learner.ledger.reader import quarantined
from learner.reports.release import main
from learner.reports.show import main as show
from tests.learner.small_run import OpenIntake, leases_of, make_config, publish


def quarantined_run(folder: Path, open_intake: OpenIntake, *, is_stopped: bool = True) -> list[str]:
    """A run with two quarantined prompts; their ids."""
    intake = open_intake(make_config(folder, actor={"max_failures": 1}))
    publish(intake, step=0)
    leases = leases_of(intake, b"here", at_most=2)
    for lease, reason in zip(leases, ("too long", "no \x1b[31mtokens"), strict=True):
        intake.fail(b"here", lease.position, lease.attempt, reason, is_prompts_fault=True, now=0.0)
    intake.ledger.commit()
    if is_stopped:
        intake.ledger.close()
    return [lease.prompt_id for lease in leases]


def still_quarantined(folder: Path) -> list[str]:
    with open_copy(folder / "ledger") as reader:
        return [row.prompt_id for row in quarantined(reader)]


def test_without_a_prompt_it_lists_them_with_their_reasons(
    tmp_path: Path, open_intake: OpenIntake, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = quarantined_run(tmp_path, open_intake)
    main([str(tmp_path)])
    assert capsys.readouterr().out.splitlines() == [
        f"prompt {first}, position 0: failed 1 times, on here; at last: too long",
        f"prompt {second}, position 1: failed 1 times, on here; at last: no \\x1b[31mtokens",
    ]
    assert len(still_quarantined(tmp_path)) == 2


def test_dcpo_show_says_why_a_prompt_is_not_leased_any_more(
    tmp_path: Path, open_intake: OpenIntake, capsys: pytest.CaptureFixture[str]
) -> None:
    first, _ = quarantined_run(tmp_path, open_intake)
    (tmp_path / "config.json").write_text(make_config(tmp_path).model_dump_json())
    show([str(tmp_path), "--prompt", first, "--json"])
    assert '"quarantine": "failed 1 times, on here; at last: too long"' in capsys.readouterr().out


def test_one_prompt_or_all_are_released_for_the_next_start(
    tmp_path: Path, open_intake: OpenIntake, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = quarantined_run(tmp_path, open_intake)
    main([str(tmp_path), second])
    assert still_quarantined(tmp_path) == [first]
    assert capsys.readouterr().out.startswith(f"released: prompt {second}, which failed 1 times, on here")
    main([str(tmp_path), "--all"])
    assert still_quarantined(tmp_path) == []
    assert open_intake(make_config(tmp_path)).quarantined == {}


@pytest.mark.parametrize(
    ("prefix", "problem"), [("other", "no quarantined prompt has an id that begins so"), ("prompt", "several begin so")]
)
def test_a_name_that_fits_none_or_several_is_refused(
    tmp_path: Path, open_intake: OpenIntake, capsys: pytest.CaptureFixture[str], prefix: str, problem: str
) -> None:
    quarantined_run(tmp_path, open_intake)
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path), prefix])
    assert problem in capsys.readouterr().err


def test_a_run_that_a_learner_works_on_is_listed_but_not_changed(
    tmp_path: Path, open_intake: OpenIntake, capsys: pytest.CaptureFixture[str]
) -> None:
    quarantined_run(tmp_path, open_intake, is_stopped=False)
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path), "--all"])
    assert "another learner is running on this folder" in capsys.readouterr().err
