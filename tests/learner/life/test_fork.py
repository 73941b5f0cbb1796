"""A fork's ledger is that of the original at a step, and goes on as the original did."""

import json
from pathlib import Path

import pytest

from bench.chaos.recount import recount
from dcpo_async.errors import ConfigError
from learner.checkpoints.folder import complete_steps
from learner.ledger.copy import open_copy
from learner.ledger.reader import LedgerReader
from learner.life.backup import back_up
from learner.life.events import events, write_event
from learner.life.fork import fork, main
from tests.learner.life.made_run import begin, go_on, take_checkpoint
from tests.learner.small_run import answer, make_config, make_intake, publish


@pytest.fixture
def original(tmp_path: Path) -> Path:
    """A run of nine steps over eight prompts, with the checkpoints of steps 4 and 7, and the lease of a tenth step."""
    intake = begin(tmp_path / "run")
    go_on(intake, 4)
    take_checkpoint(intake)
    write_event(intake.ledger, 4, "set", name="later")
    go_on(intake, 3)
    take_checkpoint(intake)
    go_on(intake, 2)
    publish(intake, 9)
    intake.grant(b"a", now=0.0)
    intake.ledger.close()
    return tmp_path / "run"


def contents(reader: LedgerReader, before: int) -> object:
    """Visits and scores of all steps before one, and the statistics of all prompts."""
    visits = [visit for visit in reader.visits() if visit.step is not None and visit.step < before]
    prompts = {visit.prompt_id for visit in reader.visits()}
    return (
        visits,
        [reader.read_scores(visit.position) for visit in visits],
        {prompt: reader.reward_stats(prompt) for prompt in prompts},
    )


def test_a_fork_ends_at_its_step_and_goes_on_as_the_original_did(original: Path, tmp_path: Path) -> None:
    run_id = fork(original, tmp_path / "fork", 4)
    assert complete_steps(tmp_path / "fork" / "checkpoints") == [4]
    with open_copy(tmp_path / "fork" / "ledger", is_checked=True) as reader:
        assert (reader.next_batch_step(), reader.next_position(), reader.meta("run_id")) == (4, 8, run_id)
        assert {visit.step for visit in reader.visits()} == {0, 1, 2, 3}
        assert set(reader.version_steps().values()) == {0, 1, 2, 3, 4}
        (event,) = events(reader)
        assert (event.kind, event.step, event.content["run_id"]) == ("forked", 4, "run-1234")
    lines = [json.loads(line) for line in (tmp_path / "fork" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    intake = begin(tmp_path / "fork")
    assert intake.generated_tokens == lines[-1]["generated_tokens"]
    go_on(intake, 5)
    intake.ledger.close()
    with open_copy(original / "ledger") as reader, open_copy(tmp_path / "fork" / "ledger") as forked:
        assert contents(forked, 9) == contents(reader, 9)
    found = recount(tmp_path / "fork" / "ledger" / "ledger.sqlite", groups_per_step=2, max_lag=0, checkpoint_interval=1)
    assert (found.steps, found.faults) == (9, ())


def test_a_fork_can_be_backed_up_before_its_learner_was_ever_started(original: Path, tmp_path: Path) -> None:
    fork(original, tmp_path / "fork", 7)
    backup, records = back_up(tmp_path / "fork", tmp_path / "backup")
    assert (backup.step, backup.next_step, records) == (7, 7, 0)


def test_what_was_counted_and_had_not_trained_is_leased_again(tmp_path: Path) -> None:
    config = make_config(tmp_path / "run", groups_per_step=2, max_lag=2)
    intake = make_intake(config)
    intake.ledger.set_meta("run_id", "run-1234")
    version = publish(intake, 0)
    leases = [lease for lease in (intake.grant(b"a", now=0.0) for _ in range(6)) if lease is not None]
    assert len(leases) == 6
    # The second is still being answered when the third, which the first step trains, and the fifth are there.
    for place in (0, 2, 4):
        intake.accept(b"a", answer(leases[place], version))
    assert intake.commit_batch(0)
    take_checkpoint_of = intake.ledger.next_batch_step()
    intake.accept(b"a", answer(leases[1], version))
    assert intake.commit_batch(1)
    publish(intake, 1)
    take = take_checkpoint(intake)
    assert (take_checkpoint_of, take) == (1, 2)
    (tmp_path / "run" / "checkpoints" / "step-00000002").rename(tmp_path / "run" / "checkpoints" / "step-00000001")
    intake.ledger.close()
    meta = tmp_path / "run" / "checkpoints" / "step-00000001" / "meta.json"
    meta.write_text(meta.read_text().replace('"step": 2', '"step": 1'))
    fork(tmp_path / "run", tmp_path / "fork", 1)
    with open_copy(tmp_path / "fork" / "ledger", is_checked=True) as reader:
        found = [(visit.position, visit.state, visit.step) for visit in reader.visits()]
    assert found == [(0, "accepted", 0), (1, "leased", None), (2, "accepted", 0)]
    again = make_intake(make_config(tmp_path / "fork", groups_per_step=2, max_lag=2))
    publish(again, 1)
    # Nobody lists it, as after any start.
    again.start_clock(0.0)
    again.release_unlisted(100.0)
    positions = [lease.position for lease in (again.grant(b"b", now=100.0) for _ in range(3)) if lease is not None]
    assert positions == [1, 3, 4]
    again.ledger.close()


def test_a_step_without_a_checkpoint_is_refused_with_those_that_have_one(
    original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match=r"no checkpoint of step 5 stands; those of steps 4, 7 do"):
        fork(original, tmp_path / "fork", 5)
    with pytest.raises(SystemExit) as end:
        main([str(original), str(original), "--step", "4"])
    assert end.value.code == 2
    assert "is not replaced" in capsys.readouterr().err
    main([str(original), str(tmp_path / "fork"), "--step", "4"])
    assert "which goes on after step 4" in capsys.readouterr().out
