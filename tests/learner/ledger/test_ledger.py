"""The ledger on disk: what is committed survives a kill at any moment, and nothing else does."""

import contextlib
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dcpo_async.algorithm import RewardStats
from dcpo_async.errors import LedgerError
from dcpo_async.records import Prompt
from learner.ledger.ledger import Ledger, expect_meta
from learner.ledger.reader import StoredGroup


@contextmanager
def opened(folder: Path, segment_bytes: int = 1 << 20) -> Iterator[Ledger]:
    ledger = Ledger(folder, segment_bytes)
    yield ledger
    ledger.close()


def killed(ledger: Ledger, copy: Path) -> Path:
    """The folder as kill -9 would leave it now: every file as it is, and nothing flushed or closed."""
    shutil.copytree(ledger.folder, copy)
    return copy


def add_group(ledger: Ledger, position: int, num_bytes: int = 3) -> StoredGroup:
    """A leased and accepted group of the prompt `p<position>`, whose frames name its position."""
    group = StoredGroup(position, (b"header", bytes([position]) * num_bytes), (1.0, 0.0), (0.5, -0.5))
    ledger.write_lease(position, f"p{position}", visit=1, attempt=1, weights_step=0)
    ledger.accept(group, f"p{position}", RewardStats().with_rewards(group.rewards), weights_step=0)
    return group


def segment(ledger: Ledger, number: int) -> Path:
    return ledger.folder / "segments" / f"{number:06d}.segment"


# ---- durability


def test_what_is_committed_survives_a_kill(tmp_path: Path) -> None:
    with opened(tmp_path / "a") as ledger:
        group = add_group(ledger, 0)
        ledger.commit()
        with opened(killed(ledger, tmp_path / "b")) as survivor:
            assert survivor.read_group(0) == group
            assert survivor.reward_stats("p0") == RewardStats(1, 2, 10**9, 10**18)
            assert survivor.num_groups == 1


def test_what_is_not_committed_is_gone_after_a_kill(tmp_path: Path) -> None:
    with opened(tmp_path / "a") as ledger:
        add_group(ledger, 0)
        ledger.commit()
        add_group(ledger, 1)
        with opened(killed(ledger, tmp_path / "b")) as survivor:
            assert survivor.visit(1) is None
            assert survivor.reward_stats("p1") == RewardStats()
            assert survivor.num_groups == 1
            with pytest.raises(LedgerError, match="no group at position 1"):
                survivor.read_group(1)


def test_bytes_without_a_row_are_cut_at_start_and_written_over(tmp_path: Path) -> None:
    with opened(tmp_path / "a") as ledger:
        add_group(ledger, 0)
        ledger.commit()
        folder = killed(ledger, tmp_path / "b")
    with (folder / "segments" / "000001.segment").open("ab") as file:
        file.write(b"half of a group that was never acknowledged")
    with opened(folder) as survivor:
        group = add_group(survivor, 1)
        survivor.commit()
        assert survivor.read_group(1) == group
        assert segment(survivor, 1).stat().st_size == 2 * segment(ledger, 1).stat().st_size


def test_a_segment_that_a_kill_left_without_rows_is_deleted(tmp_path: Path) -> None:
    with opened(tmp_path / "a", segment_bytes=10) as ledger:
        add_group(ledger, 0)
        ledger.commit()
        add_group(ledger, 1)
        assert segment(ledger, 2).exists()
        with opened(killed(ledger, tmp_path / "b")) as survivor:
            assert not segment(survivor, 2).exists()
            assert survivor.read_group(0).position == 0


def test_a_segment_shorter_than_its_rows_say_is_an_error(tmp_path: Path) -> None:
    with opened(tmp_path / "a") as ledger:
        add_group(ledger, 0)
    with segment(ledger, 1).open("r+b") as file:
        file.truncate(5)
    with pytest.raises(LedgerError, match=r"5 bytes, but the ledger points to \d+"):
        Ledger(tmp_path / "a")


def test_changed_bytes_are_found_by_their_digest(tmp_path: Path) -> None:
    with opened(tmp_path / "a") as ledger:
        add_group(ledger, 0)
        ledger.commit()
        with segment(ledger, 1).open("r+b") as file:
            file.seek(-1, 2)
            file.write(b"x")
        with pytest.raises(LedgerError, match="do not match their digest"):
            ledger.read_group(0)


def test_after_it_was_abandoned_nothing_can_be_committed_any_more(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "a")
    add_group(ledger, 0)
    ledger.abandon()
    with pytest.raises(LedgerError):
        ledger.commit()
    with opened(tmp_path / "a") as survivor:
        assert survivor.num_groups == 0


def test_rewards_and_advantages_come_back_bit_for_bit(tmp_path: Path) -> None:
    values = (0.1 + 0.2, -1e-300, 1 / 3)
    with opened(tmp_path / "a") as ledger:
        ledger.write_lease(0, "p", visit=1, attempt=1, weights_step=0)
        group = StoredGroup(0, (b"",), values, values)
        ledger.accept(group, "p", RewardStats().with_rewards([1.0]), weights_step=0)
        assert ledger.read_group(0) == group


# ---- statistics


def test_statistics_in_millionths_go_on_in_billionths(ledger_in_millionths: Path) -> None:
    p, q = RewardStats().with_rewards([1, 0]).with_rewards([-0.1, 0]), RewardStats().with_rewards([0, 0])
    with opened(ledger_in_millionths) as ledger:
        assert (ledger.reward_stats("p"), ledger.reward_stats("q")) == (p, q)
        p = p.with_rewards([1 / 3, 1])
        ledger.write_lease(0, "p", visit=3, attempt=1, weights_step=0)
        ledger.accept(StoredGroup(0, (b"",), (1 / 3, 1.0), (0.0, 0.0)), "p", p, weights_step=0)
    with opened(ledger_in_millionths) as ledger:
        assert (ledger.reward_stats("p"), ledger.reward_stats("q")) == (p, q)


def test_an_opening_that_fails_leaves_statistics_in_millionths(ledger_in_millionths: Path, tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(ledger_in_millionths / "ledger.sqlite")) as connection:
        connection.executescript(
            "CREATE TABLE groups (position INTEGER PRIMARY KEY, segment INTEGER, byte_offset INTEGER, "
            "num_bytes INTEGER, digest TEXT, rewards TEXT, advantages TEXT); "
            "INSERT INTO groups VALUES (0, 1, 0, 99, '', '', '')"
        )
    with pytest.raises(LedgerError, match="0 bytes, but the ledger points to 99"):
        Ledger(ledger_in_millionths)
    survivor = shutil.copytree(ledger_in_millionths, tmp_path / "b")
    with contextlib.closing(sqlite3.connect(survivor / "ledger.sqlite")) as connection:
        assert connection.execute("SELECT sum_micro FROM prompt_stats").fetchall() == [(900_000,), (0,)]


def test_a_sum_of_rewards_beyond_64_bits_is_refused(tmp_path: Path) -> None:
    most = 2**63 - 1
    with opened(tmp_path) as ledger:
        for position, total in enumerate((most, -most - 1)):
            ledger.write_lease(position, "p", visit=1, attempt=1, weights_step=0)
            stats = RewardStats(1, 1, total, total**2)
            ledger.accept(StoredGroup(position, (b"",), (1.0,), (0.0,)), "p", stats, weights_step=0)
            assert ledger.reward_stats("p") == stats
        ledger.write_lease(2, "p", visit=1, attempt=1, weights_step=0)
        with pytest.raises(LedgerError, match="int too large"):
            ledger.accept(StoredGroup(2, (b"",), (1.0,), (0.0,)), "p", RewardStats(1, 1, 2**63, 2**126), weights_step=0)


# ---- who may open it


def test_a_second_learner_on_the_same_folder_is_refused_as_bad_input(tmp_path: Path) -> None:
    with opened(tmp_path / "a"), pytest.raises(LedgerError, match="another learner is running on this folder") as error:
        Ledger(tmp_path / "a")
    assert error.value.exit_code == 2


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(LedgerError, match=r"ledger\.sqlite: .*Not a directory|File exists"):
        Ledger(tmp_path / "a")


def test_a_file_that_is_no_ledger_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite").write_text("certainly not a database, and long enough to show it" * 100)
    with pytest.raises(LedgerError, match="file is not a database"):
        Ledger(tmp_path)


def test_every_opening_is_a_new_incarnation(tmp_path: Path) -> None:
    found = []
    for _ in range(3):
        with opened(tmp_path) as ledger:
            found.append(ledger.incarnation)
    assert found == [1, 2, 3]


def test_a_word_about_the_run_is_set_once_and_held_to(tmp_path: Path) -> None:
    with opened(tmp_path) as ledger:
        expect_meta(ledger, "seed", "1", "choose another --folder")
        expect_meta(ledger, "seed", "1", "choose another --folder")
        with pytest.raises(LedgerError, match="has seed 1, now it is 2; choose another --folder"):
            expect_meta(ledger, "seed", "2", "choose another --folder")


# ---- rows


def test_a_lease_that_goes_out_again_keeps_its_row(tmp_path: Path) -> None:
    with opened(tmp_path) as ledger:
        ledger.write_lease(5, "p", visit=2, attempt=1, weights_step=3)
        ledger.write_failure(5, failures=1)
        ledger.write_lease(5, "p", visit=2, attempt=2, weights_step=4)
        row = ledger.visit(5)
        assert row is not None
        assert (row.prompt_id, row.visit, row.attempt, row.failures, row.weights_step) == ("p", 2, 2, 1, 4)
        assert ledger.next_position() == 6


def test_a_quarantined_position_is_never_leased_again(tmp_path: Path) -> None:
    with opened(tmp_path) as ledger:
        ledger.write_quarantine(7, "p", visit=1)
        assert ledger.next_position() == 8
        assert [row.position for row in ledger.visits("quarantined")] == [7]


def test_what_a_prompt_says_is_kept_from_its_first_start_on(tmp_path: Path) -> None:
    prompt = Prompt("p", "1+1=", "2", (1, 2))
    with opened(tmp_path) as ledger:
        ledger.write_prompts([prompt])
    with opened(tmp_path) as ledger:
        ledger.write_prompts([prompt, Prompt("q", "1+2=", "3", (3,))])
        assert [ledger.prompt_text(prompt_id) for prompt_id in ("p", "q", "r")] == [("1+1=", "2"), ("1+2=", "3"), None]


def test_prompts_that_were_visited_are_found_by_the_beginning_of_their_id(tmp_path: Path) -> None:
    with opened(tmp_path) as ledger:
        for position, prompt_id in enumerate(["ab", "aa", "ab", "b%"]):
            ledger.write_lease(position, prompt_id, visit=1, attempt=1, weights_step=0)
        assert ledger.prompt_ids("a", limit=9) == ["aa", "ab"]
        assert ledger.prompt_ids("a", limit=1) == ["aa"]
        assert ledger.prompt_ids("%", limit=9) == []


def test_a_batch_of_two_updates_is_split_into_steps_in_order(tmp_path: Path) -> None:
    with opened(tmp_path) as ledger:
        for position in range(4):
            add_group(ledger, position)
        ledger.write_batch(6, [0, 1, 2, 3], groups_per_step=2)
        assert (ledger.step_positions(6), ledger.step_positions(7), ledger.step_positions(8)) == ([0, 1], [2, 3], [])
        assert ledger.next_batch_step() == 8
        assert [row.step for row in ledger.visits()] == [6, 6, 7, 7]


def test_a_group_cannot_be_assigned_to_two_steps(tmp_path: Path) -> None:
    with opened(tmp_path) as ledger:
        add_group(ledger, 0)
        ledger.write_batch(0, [0], groups_per_step=1)
        with pytest.raises(Exception, match="UNIQUE"):
            ledger.write_batch(1, [0], groups_per_step=1)


def test_a_version_number_that_was_committed_is_never_granted_again(tmp_path: Path) -> None:
    with opened(tmp_path) as ledger:
        versions = [ledger.grant_version(step=0), ledger.grant_version(step=0)]
    with opened(tmp_path) as ledger:
        versions.append(ledger.grant_version(step=9))
        assert versions == [1, 2, 3]
        assert ledger.version_steps() == {1: 0, 2: 0, 3: 9}


def test_old_logprobs_are_written_once(tmp_path: Path) -> None:
    with opened(tmp_path) as ledger:
        assert ledger.read_old_logprobs(3, 1) is None
        ledger.write_old_logprobs(3, 1, b"first")
        ledger.write_old_logprobs(3, 1, b"second")
        assert ledger.read_old_logprobs(3, 1) == b"first"


# ---- segments


def test_a_segment_goes_when_every_retained_checkpoint_contains_its_groups(tmp_path: Path) -> None:
    with opened(tmp_path, segment_bytes=10) as ledger:
        for position in range(4):
            add_group(ledger, position)
        ledger.write_batch(0, [0, 1], groups_per_step=1)
        # A checkpoint after one step contains group 0; group 1 may be trained again from it.
        assert ledger.release_segments(oldest_retained_step=1) == [1]
        assert not segment(ledger, 1).exists()
        assert ledger.read_group(1).position == 1
        with pytest.raises(LedgerError, match="gone"):
            ledger.read_group(0)
        assert ledger.release_segments(oldest_retained_step=2) == [2]
        assert ledger.release_segments(oldest_retained_step=99) == []


def test_a_segment_stays_for_one_group_that_is_still_to_be_trained(tmp_path: Path) -> None:
    with opened(tmp_path, segment_bytes=50) as ledger:
        for position in range(3):
            add_group(ledger, position)
        assert segment(ledger, 2).exists()
        ledger.write_batch(0, [0], groups_per_step=1)
        assert ledger.release_segments(oldest_retained_step=9) == []


def test_groups_that_are_too_old_keep_no_segment(tmp_path: Path) -> None:
    with opened(tmp_path, segment_bytes=10) as ledger:
        add_group(ledger, 0)
        add_group(ledger, 1)
        ledger.write_untrained([0], "too_old")
        assert ledger.release_segments(oldest_retained_step=1) == [1]


def test_a_segment_of_old_logprobs_stays_as_long_as_their_step_may_be_repeated(tmp_path: Path) -> None:
    with opened(tmp_path, segment_bytes=10) as ledger:
        add_group(ledger, 0)
        ledger.write_batch(0, [0], groups_per_step=1)
        ledger.write_old_logprobs(0, 0, b"old log-probs")
        add_group(ledger, 1)
        assert ledger.release_segments(oldest_retained_step=0) == []
        assert ledger.release_segments(oldest_retained_step=1) == [1, 2]


def test_a_kill_right_after_segments_were_released_leaves_a_ledger_that_opens(tmp_path: Path) -> None:
    with opened(tmp_path / "a", segment_bytes=10) as ledger:
        add_group(ledger, 0)
        ledger.write_batch(0, [0], groups_per_step=1)
        ledger.commit()
        add_group(ledger, 1)
        assert ledger.release_segments(oldest_retained_step=1) == [1]
        with opened(killed(ledger, tmp_path / "b")) as survivor:
            assert survivor.num_groups >= 1
