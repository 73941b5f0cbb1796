"""What another process reads is there whole or not at all."""

import json
from pathlib import Path

import pytest

from dcpo_async.durable import publish_folder, replace_folder, write_json, write_text


def test_json_files_are_replaced_whole(tmp_path: Path) -> None:
    write_json(tmp_path / "status.json", {"step": 1})
    write_json(tmp_path / "status.json", {"step": 2})
    assert json.loads((tmp_path / "status.json").read_text()) == {"step": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


def test_text_keeps_every_character(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "½ – 答案\n")
    assert (tmp_path / "a.txt").read_bytes() == "½ – 答案\n".encode()


def test_a_folder_gets_its_name_with_all_that_is_in_it(tmp_path: Path) -> None:
    writing = tmp_path / ".writing"
    (writing / "inner").mkdir(parents=True)
    (writing / "inner" / "file").write_text("x")
    publish_folder(writing, tmp_path / "final")
    assert (tmp_path / "final" / "inner" / "file").read_text() == "x"
    assert not writing.exists()


def test_a_folder_that_holds_something_is_not_replaced(tmp_path: Path) -> None:
    for name in (".writing", "final"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    with pytest.raises(OSError, match="not empty"):
        publish_folder(tmp_path / ".writing", tmp_path / "final")
    assert (tmp_path / "final" / "file").read_text() == "final"


def test_a_folder_is_replaced_with_all_that_is_in_it(tmp_path: Path) -> None:
    writing, final = two_folders(tmp_path)
    replace_folder(writing, final)
    assert (final / "file").read_text() == ".writing"
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


def test_a_folder_stands_until_the_one_in_its_place_is_on_disk(tmp_path: Path) -> None:
    writing, final = two_folders(tmp_path)
    (writing / "nowhere").symlink_to("no-such-file")  # what cannot be brought to disk
    with pytest.raises(FileNotFoundError):
        replace_folder(writing, final)
    assert (final / "file").read_text() == "final"


def two_folders(tmp_path: Path) -> tuple[Path, Path]:
    for name in (".writing", "final"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    return tmp_path / ".writing", tmp_path / "final"
