from pathlib import Path

import pytest

from actor.engine.start_path import StartPath


@pytest.fixture
def versions(tmp_path: Path) -> tuple[Path, Path]:
    made = tmp_path / "store" / "v1", tmp_path / "store" / "v2"
    for folder in made:
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(folder.name)
    return made


def test_the_path_stays_while_the_folder_behind_it_changes(tmp_path: Path, versions: tuple[Path, Path]) -> None:
    start = StartPath(tmp_path / "run")
    first = start.to(versions[0])
    assert (first / "config.json").read_text() == "v1"
    assert start.to(versions[1]) == first
    assert (first / "config.json").read_text() == "v2"


def test_engines_of_one_machine_have_paths_of_their_own(tmp_path: Path, versions: tuple[Path, Path]) -> None:
    one, other = StartPath(tmp_path / "run"), StartPath(tmp_path / "run")
    assert one.to(versions[0]) == tmp_path / "run" / "engine-0" / "model"
    assert other.to(versions[1]) == tmp_path / "run" / "engine-1" / "model"
    assert (tmp_path / "run" / "engine-0" / "model" / "config.json").read_text() == "v1"


def test_a_path_that_was_let_go_leaves_nothing_and_is_free(tmp_path: Path, versions: tuple[Path, Path]) -> None:
    one, other = StartPath(tmp_path / "run"), StartPath(tmp_path / "run")
    path = one.to(versions[0])
    one.close()
    one.close()
    assert list((tmp_path / "run").iterdir()) == []
    assert other.to(versions[1]) == path


def test_what_a_killed_process_left_behind_is_taken_over(tmp_path: Path, versions: tuple[Path, Path]) -> None:
    place = tmp_path / "run" / "engine-0"
    place.mkdir(parents=True)
    for name in ("model", "next"):
        (place / name).symlink_to(versions[0])
    assert (StartPath(tmp_path / "run").to(versions[1]) / "config.json").read_text() == "v2"
