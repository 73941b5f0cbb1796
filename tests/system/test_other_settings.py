"""A learner that is stopped and comes back with other settings; a machine whose groups are refused."""

import signal
from pathlib import Path

import pytest

from dcpo_async.run_folder import RunFolder
from learner.ledger.copy import open_copy
from tests.system.services import Services, assert_counted_once

pytestmark = [pytest.mark.system, pytest.mark.timeout(400)]

WORDS = ("--lag.max_lag", "2", "--network.silence_seconds", "3", "--network.heartbeat_seconds", "1")


def test_actors_wait_for_a_stopped_learner_and_no_group_by_its_old_settings_counts_afterwards(
    tmp_path: Path, model: Path
) -> None:
    with Services(tmp_path, model) as services:
        learner = services.start_learner(*WORDS)
        actor, sick = (
            services.start_actor("--tokens-per-second", "50"),
            services.start_actor("--nan-after-groups", "2"),
        )
        services.until_step(2)
        services.until("the end of the sick engine", lambda: "started again: its groups are refused" in sick.log)
        assert "its groups are refused: log-probability nan" in sick.log
        sick.signal(signal.SIGTERM)
        services.until("the end of the sick actor", lambda: sick.code is not None)
        services.services.remove(sick)

        learner.signal(signal.SIGTERM)
        services.ends_well(learner)
        engine_log = actor.log_file.with_name("engine-0.log")
        assert "takes no more groups, until it is back: the learner stops" in engine_log.read_text()
        assert actor.code is None
        before = {position for (position,) in services.ledger("SELECT position FROM groups")}
        assert services.ledger("SELECT COUNT(*) FROM quarantines") == [(0,)]

        others = ("--sampling.max_response_tokens", "24", "--sampling.stop_token_ids", "3,4")
        again = services.start_learner(*WORDS, *others, "--dismiss")
        services.until("a new engine", lambda: "is started anew" in actor.log)
        assert "sampling.max_response_tokens: 16 → 24" in actor.log
        step = len(services.metrics())
        services.until_step(step + 3)
        again.signal(signal.SIGTERM)
        services.ends_well(again)
        services.ends_well(actor)
        assert "is started again" not in actor.log, "a new start for new settings is no failure"
        cut = {True: set[int](), False: set[int]()}
        ends = {True: set[bool](), False: set[bool]()}
        with open_copy(RunFolder(services.run).ledger) as reader:
            for row in reader.visits("accepted"):
                for response in reader.read_group(row.position).group.responses:
                    if response.finish_reason == "length":
                        cut[row.position in before].add(len(response.token_ids))
                    stops = [place for place, token in enumerate(response.token_ids) if token in (3, 4)]
                    if stops:
                        is_end = stops == [len(response.token_ids) - 1] and response.finish_reason == "stop"
                        ends[row.position in before].add(is_end)
        assert cut == {True: {16}, False: {24}}
        assert ends == {True: {False}, False: {True}}
        assert_counted_once(services)
