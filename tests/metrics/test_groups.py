"""Every metric has a group, and its name within it is that of metrics.jsonl."""

import pytest

from dcpo_async.metrics.groups import GROUPS, OTHER, group_of, grouped, of_evaluation
from dcpo_async.monitoring.exposition import OF_STEP


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("reward", "reward"),
        ("reward/sums", "reward"),
        ("tcr_nonzero", "policy"),
        ("lag_0/tcr", "lag"),
        ("lag_mean", "lag"),
        ("response_length", "responses"),
        ("responses_in_flight", "fleet"),
        ("response_capacity", "fleet"),
        ("total_leases_again", "fleet"),
        ("total_groups_accepted", "progress"),
        ("step_seconds", "speed"),
        ("publish_bytes", "storage"),
        ("unheard_of", OTHER),
    ],
)
def test_a_metric_is_in_its_group(name: str, group: str) -> None:
    assert group_of(name) == group


def test_names_stay_what_they_are() -> None:
    assert grouped({"tcr": 0.1, "lag_0/tcr": 0.2}) == {"policy/tcr": 0.1, "lag/lag_0/tcr": 0.2}
    assert of_evaluation({"step": 3, "seconds": 1.0, "a/avg@1": 0.5}) == {"evaluation/a/avg@1": 0.5}


def test_what_prometheus_is_told_of_a_step_has_a_group_and_no_group_is_empty() -> None:
    assert not [key for _, key, _ in OF_STEP if group_of(key) == OTHER]
    assert all(GROUPS.values())
