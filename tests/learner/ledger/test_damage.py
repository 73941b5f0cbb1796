"""Flipped bits in the files of a ledger: what is read afterwards is what was written, or it is refused in words."""

import contextlib
import errno
import os
import random
import shutil
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from dcpo_async.errors import LedgerError
from learner.ledger.ledger import Ledger
from learner.ledger.rows import translated
from tests.learner.small_run import make_config, make_intake, make_prompts, train

FLIPS = (1, 8)
WEIGHTS = {"ledger.sqlite": 6, "ledger.sqlite-wal": 6}
"""Much of a database is empty, and damage there is harmless."""
STEPS = [[(1.0, 0.0), (0.0, 0.0)], [(1.0, 1.0), (0.0, 1.0)], [(0.0, 1.0), (1.0, 0.0)]]
META = ("run_id", "seed", "min_gap", "updates_per_batch", "generated_tokens", "incarnation", "finished_step")


@pytest.fixture(scope="module")
def ledgers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A ledger as its learner left it when it ended, and as kill -9 leaves it in the next start, with a log."""
    root = tmp_path_factory.mktemp("ledgers")
    config = make_config(root / "run", max_lag=4)
    for start in range(2):
        intake = make_intake(config, segment_bytes=1500)
        intake.ledger.set_meta("run_id", "run-1")
        for _ in range(6):
            train(intake, *STEPS, text="an answer of some words, number {index}")
            for index in range(2):
                position = intake.ledger.step_positions(intake.ledger.next_batch_step() - 1)[0]
                intake.ledger.write_old_logprobs(position, index, bytes([start, index]) * 40)
            intake.ledger.commit()
        if start == 0:
            intake.ledger.close()
            shutil.copytree(config.folder / "ledger", root / "closed")
    shutil.copytree(config.folder / "ledger", root / "killed")
    intake.ledger.abandon()
    return root / "closed", root / "killed"


def content(folder: Path) -> list[Any]:
    """Everything that a learner reads from a ledger, in one start."""
    ledger = Ledger(folder)
    try:
        visits = ledger.visits()
        prompts = [prompt.id for prompt in make_prompts(16)]
        positions = [visit.position for visit in visits]
        return [
            visits,
            [ledger.meta(key) for key in META],
            [ledger.prompt_text(prompt) for prompt in prompts],
            [ledger.reward_stats(prompt) for prompt in prompts],
            [ledger.rewards_until(prompt, 1000) for prompt in prompts],
            [ledger.read_scores(position) for position in positions],
            [ledger.read_group(position) for position in positions],
            [ledger.read_old_logprobs(position, index) for position in positions for index in range(2)],
            [ledger.step_positions(step) for step in range(ledger.next_batch_step())],
            ledger.version_steps(),
            (ledger.next_position(), ledger.num_groups, ledger.incarnation),
            ledger.grant_version(99),
        ]
    finally:
        ledger.abandon()


def flip(path: Path, num_bits: int, dice: random.Random) -> None:
    """Turn over that many bits of a file, anywhere in it."""
    data = bytearray(path.read_bytes())
    for _ in range(num_bits):
        bit = dice.randrange(8 * len(data))
        data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file of the ledger itself: not the log's index, which SQLite makes anew, nor the lock."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(("-shm", ".lock"))
    }


def trial(ledger: Path, folder: Path, dice: random.Random, undamaged: list[Any]) -> str:
    """Damage a copy of a ledger and open it; returns what came of it, with the name of the file."""
    shutil.copytree(ledger, folder)
    parts = sorted({name.split("/")[0] for name in files_of(folder)})
    part = folder / dice.choices(parts, [WEIGHTS.get(part, 1) for part in parts])[0]
    path = dice.choice(sorted(part.iterdir())) if part.is_dir() else part
    flip(path, dice.choice(FLIPS), dice)
    before = files_of(folder)
    kind = "segment" if part.is_dir() else path.name
    try:
        found = content(folder)
    except LedgerError as error:
        if files_of(folder) != before and "do not match their digest" not in str(error):
            return f"{kind}: written to, though refused"
        return f"{kind}: refused" if str(folder) in str(error) else f"{kind}: refused without a name: {error}"
    except Exception as error:
        return f"{kind}: {type(error).__name__}: {error}"
    return f"{kind}: harmless" if found == undamaged else f"{kind}: opened with other content"


def tally(ledgers: tuple[Path, ...], root: Path, count: int, seed: int) -> dict[str, int]:
    """How often each outcome came in that many trials, half of them with each of the ledgers."""
    dice, outcomes = random.Random(seed), Counter[str]()
    for ledger in ledgers:
        shutil.copytree(ledger, root / ledger.name)
        undamaged = content(root / ledger.name)
        for _ in range(count // len(ledgers)):
            outcomes[trial(ledger, root / "damaged", dice, undamaged)] += 1
            shutil.rmtree(root / "damaged")
    return dict(outcomes)


def assert_safe(outcomes: dict[str, int]) -> None:
    bad = {outcome: n for outcome, n in outcomes.items() if not outcome.endswith((": harmless", ": refused"))}
    assert not bad, outcomes
    print(outcomes)


def test_flipped_bits_are_harmless_or_refused_in_words(ledgers: tuple[Path, Path], tmp_path: Path) -> None:
    assert_safe(tally(ledgers, tmp_path, count=100, seed=1))


@pytest.mark.system
@pytest.mark.thorough
def test_a_thousand_ledgers_with_flipped_bits(ledgers: tuple[Path, Path], tmp_path: Path) -> None:
    assert_safe(tally(ledgers, tmp_path, count=1000, seed=2))


def test_a_row_that_is_damaged_or_missing_is_named(ledgers: tuple[Path, Path], tmp_path: Path) -> None:
    for number, (statement, words) in enumerate(
        (
            (
                "UPDATE groups SET advantages = '0.0 0.0' WHERE position = 3",
                "table groups, position 3: the row does not",
            ),
            (
                "UPDATE prompt_stats SET sum_nano = 0 WHERE prompt_id = 'prompt-1'",
                "table prompt_stats, prompt_id prompt-1",
            ),
            ("DELETE FROM steps WHERE step = 5", r"table steps: its \d+ rows are not the \d+ that were written"),
            ("DROP INDEX visits_by_prompt", "table schema"),
        )
    ):
        folder = shutil.copytree(ledgers[0], tmp_path / str(number))
        with contextlib.closing(sqlite3.connect(folder / "ledger.sqlite", isolation_level=None)) as connection:
            connection.execute(statement)
        with pytest.raises(LedgerError, match=words) as refused:
            Ledger(folder)
        assert "put back a copy of the whole folder" in str(refused.value)
        assert refused.value.exit_code == 2


def test_a_missing_log_and_an_older_copy_are_told_from_a_kill(ledgers: tuple[Path, Path], tmp_path: Path) -> None:
    closed, killed = ledgers
    without_log, older = shutil.copytree(killed, tmp_path / "a"), shutil.copytree(killed, tmp_path / "b")
    (without_log / "ledger.sqlite-wal").unlink()
    (older / "ledger.sqlite-wal").unlink()
    shutil.copyfile(closed / "ledger.sqlite", older / "ledger.sqlite")
    for folder in (without_log, older):
        with pytest.raises(LedgerError, match=r"it ends with commit \d+, though commit \d+ was acknowledged"):
            Ledger(folder)
    (older / "ledger.commits").unlink()
    Ledger(older).close()


def test_damage_that_comes_while_a_learner_runs_is_found_when_the_row_is_used(
    ledgers: tuple[Path, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(ledgers[0], tmp_path / "a")
    ledger = Ledger(folder)
    ledger._rows.query("UPDATE groups SET rewards = '1.0 1.0' WHERE position = 3")
    with pytest.raises(LedgerError, match="table groups, position 3: the row does not match its digest"):
        ledger.read_scores(3)
    ledger.abandon()


def test_a_full_disk_is_no_damage_and_says_what_to_do(tmp_path: Path) -> None:
    database = sqlite3.connect(tmp_path / "full.sqlite")
    database.execute("PRAGMA max_page_count = 1")
    with pytest.raises(sqlite3.Error) as full:
        database.execute("CREATE TABLE rows (number)")
    database.close()
    for error in (full.value, OSError(errno.ENOSPC, "No space left on device")):
        assert "make room and start the same command again, nothing that was acknowledged is lost" in str(
            translated(tmp_path, error)
        )


def test_a_commit_that_a_full_disk_refuses_is_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    config = make_config(tmp_path)
    intake = make_intake(config)
    ledger = intake.ledger
    train(intake, *STEPS)
    ledger.set_meta("kept", "yes")
    ledger.commit()
    ledger.set_meta("lost", "yes")
    ledger.write_old_logprobs(ledger.step_positions(0)[0], 0, bytes(40))
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", refuse)
        with pytest.raises(LedgerError, match="make room and start the same command"):
            ledger.commit()
    # Rows that came afterwards would be committed one by one, without what belongs to them.
    with pytest.raises((LedgerError, sqlite3.ProgrammingError)):
        ledger.set_meta("later", "yes")
    with contextlib.closing(Ledger(config.folder / "ledger")) as after:
        assert (after.meta("kept"), after.meta("lost"), after.meta("later")) == ("yes", None, None)
