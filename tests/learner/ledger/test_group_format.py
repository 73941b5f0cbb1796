"""Groups in the ledger: every format that a release has written can be read, whatever the network's messages became.

`format_1` is a ledger that the release before numbered formats wrote, with `expected.json` as that release read it.
"""

import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dcpo_async.errors import LedgerError, VersionMismatchError
from dcpo_async.protocol.codec import decode
from dcpo_async.protocol.messages import PROTOCOL_VERSION
from dcpo_async.records import Group, Response, VersionSegment
from learner.coordinator.intake import Intake
from learner.ledger.copy import open_copy
from learner.ledger.group_format import GROUP_FORMAT, decode_group, encode_group
from learner.ledger.ledger import Ledger
from learner.ledger.reader import LedgerReader
from learner.ledger.schema import LEDGER_FORMAT
from tests.learner.small_run import VOCAB_SIZE, answer, make_config, make_prompts

FORMAT_1 = Path(__file__).parent / "format_1"
EXPECTED = json.loads((FORMAT_1 / "expected.json").read_text())


def described(reader: LedgerReader, position: int) -> dict[str, Any]:
    """A group as `expected.json` has it."""
    stored = reader.read_group(position)
    group = stored.group
    found = {
        "position": group.position,
        "attempt": group.attempt,
        "rewards": stored.rewards,
        "advantages": stored.advantages,
        "given_rewards": group.rewards,
        "reasons": group.reasons,
        "responses": [
            {
                "token_ids": response.token_ids.tolist(),
                "behavior_logprobs": response.behavior_logprobs.tolist(),
                "segments": response.segments,
                "finish_reason": response.finish_reason,
                "text": response.text,
            }
            for response in group.responses
        ],
    }
    return json.loads(json.dumps(found))  # type: ignore[no-any-return]


@pytest.fixture
def old_ledger(tmp_path: Path) -> Path:
    """The folder of a run that the release before numbered formats began."""
    shutil.copytree(FORMAT_1, tmp_path / "ledger", ignore=shutil.ignore_patterns("expected.json"))
    return tmp_path


def test_a_ledger_of_the_release_before_is_read_as_that_release_read_it(old_ledger: Path) -> None:
    with open_copy(old_ledger / "ledger") as reader:
        assert [described(reader, group["position"]) for group in EXPECTED["groups"]] == EXPECTED["groups"]
        assert {str(step): reader.step_positions(step) for step in range(4)} == EXPECTED["steps"]
        assert np.frombuffer(reader.read_old_logprobs(0, 1) or b"", "<f4").tolist() == EXPECTED["old_logprobs"]
        for prompt_id, visits, count, sum_nano, sum_sq_nano in EXPECTED["stats"]:
            stats = reader.reward_stats(prompt_id)
            assert (stats.visits, stats.count, stats.sum_nano) == (visits, count, sum_nano)
            assert stats.sum_sq_nano == int(sum_sq_nano)


def test_its_groups_carry_a_header_that_todays_protocol_refuses(old_ledger: Path) -> None:
    with open_copy(old_ledger / "ledger") as reader:
        parts = reader.read_group(0).parts
    with pytest.raises(VersionMismatchError, match=f"version 2, this side speaks {PROTOCOL_VERSION}"):
        decode(parts, max_message_bytes=1 << 20)


def test_a_run_goes_on_in_it_and_new_groups_stand_beside_the_old_ones(old_ledger: Path) -> None:
    config = make_config(old_ledger, groups_per_step=2, max_lag=1)
    ledger = Ledger(old_ledger / "ledger")
    intake = Intake(config, make_prompts(6), VOCAB_SIZE, ledger)
    (open_position,) = EXPECTED["open"]
    assert ledger.meta("run_id") == "run-of-format-1"
    version = intake.grant_version(3)
    assert intake.publish(version)
    intake.release_session(b"a")
    intake.release_unlisted(now=1000.0)
    lease = intake.grant(b"b", now=1000.0)
    assert lease is not None
    assert (lease.position, lease.attempt) == (open_position, 2)
    assert intake.accept(b"b", answer(lease, version)).outcome == "accepted"
    assert intake.commit_batch(3)
    formats = [ledger.read_group(position).group_format for position in ledger.step_positions(3)]
    assert sorted(formats) == [1, GROUP_FORMAT]
    ledger.close()
    with open_copy(old_ledger / "ledger") as reader:
        assert [described(reader, group["position"]) for group in EXPECTED["groups"]] == EXPECTED["groups"]
        assert reader.read_group(lease.position).group.responses[0].text == "response 0"


def test_a_group_comes_back_as_it_was_bit_for_bit() -> None:
    responses = (
        Response(
            token_ids=np.array([5, 6, 7], dtype=np.int32),
            behavior_logprobs=np.array([-0.5, -1e-30, -2.25], dtype=np.float32),
            segments=(VersionSegment(3, 1), VersionSegment(4, 2)),
            finish_reason="stop",
            text="\\boxed{½} – 答案\n\x00",
        ),
        Response(np.empty(0, np.int32), np.empty(0, np.float32), (), "length", ""),
    )
    group = Group(
        position=1 << 40, attempt=2, responses=responses, rewards=(0.1 + 0.2, -1.0), reasons=("equal", "none")
    )
    back = decode_group(GROUP_FORMAT, encode_group(group))
    assert (back.position, back.attempt, back.rewards, back.reasons) == (1 << 40, 2, group.rewards, group.reasons)
    for one, other in zip(back.responses, responses, strict=True):
        assert (one.segments, one.finish_reason, one.text) == (other.segments, other.finish_reason, other.text)
        assert one.token_ids.tobytes() == other.token_ids.tobytes()
        assert one.behavior_logprobs.tobytes() == other.behavior_logprobs.tobytes()


def test_a_ledger_and_a_group_of_a_later_release_are_refused_in_words(tmp_path: Path) -> None:
    Ledger(tmp_path / "ledger").close()
    connection = sqlite3.connect(tmp_path / "ledger" / "ledger.sqlite")
    connection.execute(f"PRAGMA user_version = {LEDGER_FORMAT + 1}")
    connection.close()
    with pytest.raises(LedgerError, match=f"of format {LEDGER_FORMAT + 1}, this release knows formats up to"):
        Ledger(tmp_path / "ledger")
    with pytest.raises(LedgerError, match=r"in format 99 of the ledger, this release knows \[1, 2\]"):
        decode_group(99, (b"", b"", b""))
