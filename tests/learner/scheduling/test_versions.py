"""Which versions leases may ask for, by hand."""

from learner.scheduling.staleness import StalenessGate
from learner.scheduling.versions import PublishedVersions


def with_versions(*steps: int, max_lag: int = 2, next_step: int = 0) -> PublishedVersions:
    """Versions 1, 2, … of these steps, granted and published in their order; one group to a step."""
    versions = PublishedVersions(StalenessGate(max_lag, 1), publish_interval=1, steps={})
    for version, step in enumerate(steps, start=1):
        versions.granted(version, step)
        versions.publish(version, next_step)
    return versions


def test_before_the_first_publication_there_is_version_0_and_nothing_to_lease() -> None:
    versions = with_versions()
    assert (versions.newest.weights_version, versions.oldest_for(0, 0)) == (0, None)


def test_a_group_may_start_from_the_oldest_version_within_max_lag() -> None:
    versions = with_versions(0, 1, 2, 3)
    asked = [versions.oldest_for(number, 0) for number in range(6)]
    assert [found.weights_version if found else None for found in asked] == [1, 1, 1, 2, 3, 4]


def test_a_version_is_offered_though_batches_were_committed_while_it_was_written() -> None:
    """The next step trains while a version is written: with groups at hand its batch is there before the version is."""
    versions = with_versions(0)
    versions.granted(2, 1)
    assert versions.publish(2, next_step=2)
    assert versions.newest.weights_version == 2


def test_a_version_that_a_trainer_repeats_is_not_offered_before_it_has_caught_up() -> None:
    versions = with_versions(0)
    versions.resume(0, next_step=3)
    versions.granted(2, 1)
    assert not versions.publish(2, next_step=3)
    versions.granted(3, 3)
    assert versions.publish(3, next_step=3)
    assert versions.newest.weights_version == 3


def test_versions_beyond_the_step_that_a_trainer_resumes_from_are_abandoned() -> None:
    versions = with_versions(0, 1, 2)
    versions.resume(1, next_step=3)
    assert versions.newest.weights_version == 2
    assert versions.steps == {1: 0, 2: 1, 3: 2}


def test_what_no_lease_can_ask_for_is_forgotten_but_never_the_newest() -> None:
    versions = with_versions(0, 1, 2, max_lag=1)
    versions.forget_old(next_step=3)
    assert [versions.oldest_for(0, 3), versions.newest] == [versions.newest, versions.newest]
    versions.forget_old(next_step=100)
    assert versions.newest.weights_version == 3


def test_an_actor_starts_from_the_version_that_it_has_where_that_is_new_enough() -> None:
    versions = PublishedVersions(StalenessGate(max_lag=2, groups_per_step=2), 1, {})
    for step in range(3):
        versions.granted(step + 1, step)
        versions.publish(step + 1, step)
    assert [versions.oldest_for(0, 2, at_least).weights_version for at_least in (0, 1, 2, 3, 99)] == [1, 1, 2, 3, 3]  # type: ignore[union-attr]
    assert versions.oldest_for(2, 2, at_least=1) == versions.oldest_for(2, 2)
