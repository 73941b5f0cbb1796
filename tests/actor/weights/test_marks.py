"""One check of a folder serves all processes of a machine, until a byte of it could have changed."""

import asyncio
import fcntl
import os
import time
from pathlib import Path

import pytest

from actor.weights.marks import CheckedMarks
from dcpo_async.weights.places import version_folder
from tests.actor.weights.served import publish


def read_so_far() -> int:
    """Bytes that this process has read from files."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("rchar")).split()[1])


async def test_a_folder_is_read_once_for_all_processes(store: Path, tmp_path: Path) -> None:
    manifest = publish(store, 1)
    folder = version_folder(store, 1)
    num_bytes = sum(entry.num_bytes for entry in manifest.files)
    before = read_so_far()
    at_once = [CheckedMarks(tmp_path / "marks", 5.0).is_whole(folder, manifest) for _ in range(3)]
    assert await asyncio.gather(*at_once) == [True] * 3
    assert await CheckedMarks(tmp_path / "marks", 5.0).is_whole(folder, manifest)
    assert num_bytes <= read_so_far() - before < 1.5 * num_bytes


@pytest.mark.parametrize("harm", ["changed", "cut", "exchanged", "one too many", "gone"])
async def test_a_mark_does_not_hold_for_a_folder_that_was_written_to(store: Path, tmp_path: Path, harm: str) -> None:
    manifest = publish(store, 1)
    folder = version_folder(store, 1)
    marks = CheckedMarks(tmp_path / "marks", 5.0)
    assert await marks.is_whole(folder, manifest)
    await asyncio.to_thread(do_harm, folder, harm)
    assert not await marks.is_whole(folder, manifest)


def do_harm(folder: Path, harm: str) -> None:
    time.sleep(0.02)  # A file's times move by clock ticks.
    path = folder / "model.safetensors"
    match harm:
        case "changed":
            with path.open("r+b") as file:
                file.seek(-1, 2)
                file.write(b"x")
        case "cut":
            os.truncate(path, 5)
        case "exchanged":
            (folder.parent / "other").write_bytes(path.read_bytes()[:-1] + b"x")
            (folder.parent / "other").rename(path)
        case "one too many":
            (folder / "model-2.safetensors").write_bytes(b"")
        case "gone":
            path.unlink()


async def test_a_mark_is_of_one_manifest(store: Path, tmp_path: Path) -> None:
    manifest = publish(store, 1)
    marks = CheckedMarks(tmp_path / "marks", 5.0)
    assert await marks.is_whole(version_folder(store, 1), manifest)
    assert not await marks.is_whole(version_folder(store, 1), manifest.model_copy(update={"step": 9}))


async def test_a_process_that_checks_and_hangs_is_not_waited_for(store: Path, tmp_path: Path) -> None:
    manifest = publish(store, 1)
    folder, marks = version_folder(store, 1), CheckedMarks(tmp_path / "marks", 0.3)
    assert await marks.is_whole(folder, manifest)
    [mark] = (tmp_path / "marks").iterdir()
    mark.write_bytes(b"")
    hung = os.open(mark, os.O_RDWR)
    fcntl.flock(hung, fcntl.LOCK_EX)
    started = time.monotonic()
    assert await marks.is_whole(folder, manifest)
    assert time.monotonic() - started >= 0.3
    os.close(hung)


async def test_marks_of_earlier_versions_are_removed(store: Path, tmp_path: Path) -> None:
    marks = CheckedMarks(tmp_path / "marks", 5.0)
    marks.prune({1})
    for version in (1, 2, 3):
        manifest = publish(store, version)
        assert await marks.is_whole(version_folder(store, version), manifest)
    marks.prune({2})
    assert sorted(mark.name[:2] for mark in (tmp_path / "marks").iterdir()) == ["2-", "3-"]
    marks.prune(set())
    assert list((tmp_path / "marks").iterdir()) == []


async def test_marks_of_what_is_kept_beside_a_newer_version_stay(store: Path, tmp_path: Path) -> None:
    marks = CheckedMarks(tmp_path / "marks", 5.0)
    for version in (1, 2, 3):
        await marks.is_whole(version_folder(store, version), publish(store, version))
    marks.prune({1, 3})
    assert sorted(path.name.partition("-")[0] for path in (tmp_path / "marks").iterdir()) == ["1", "3"]
