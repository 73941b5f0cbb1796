"""Who reads a version keeps it; who removes one asks first."""

import os
from pathlib import Path

from dcpo_async.weights.locks import hold, is_unused, let_go, machine_id, opened

FOLDER = os.O_RDONLY | os.O_DIRECTORY


def test_a_held_folder_is_in_use_until_everybody_has_let_it_go(tmp_path: Path) -> None:
    first, second = hold(tmp_path), hold(tmp_path)
    assert first is not None
    assert second is not None
    found = []
    for descriptor in (first, second, None):
        with opened(tmp_path, FOLDER) as asking:
            found.append(is_unused(asking))
        if descriptor is not None:
            let_go(descriptor)
    assert found == [False, False, True]


def test_a_folder_that_is_being_removed_or_is_not_there_cannot_be_held(tmp_path: Path) -> None:
    with opened(tmp_path, FOLDER) as removing:
        assert is_unused(removing)
        assert hold(tmp_path) is None
    assert hold(tmp_path / "nowhere") is None
    descriptor = hold(tmp_path)
    assert descriptor is not None
    let_go(descriptor)


def test_where_folders_cannot_be_locked_the_caller_says_what_follows(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, FOLDER)
    os.close(descriptor)
    # A closed descriptor cannot be locked either, and says so by the same error.
    assert not is_unused(descriptor)
    assert is_unused(descriptor, if_unlockable=True)


def test_a_machine_is_the_same_for_all_its_processes() -> None:
    assert machine_id() == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
