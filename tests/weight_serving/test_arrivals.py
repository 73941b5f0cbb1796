"""The record of a download: what is said to have come has come, and nothing is left of it."""

from pathlib import Path

import pytest

from dcpo_async.records import STRETCH_BYTES
from dcpo_async.weight_serving.arrivals import ARRIVALS_NAME, read_arrived, recording
from dcpo_async.weights.manifest import FileEntry

DIGEST = "0" * 32
ENTRIES = (
    FileEntry(name="config.json", num_bytes=10, digests=(DIGEST,)),
    FileEntry(name="empty.txt", num_bytes=0, digests=()),
    FileEntry(name="model.safetensors", num_bytes=2 * STRETCH_BYTES + 5, digests=(DIGEST,) * 3),
)


def test_each_stretch_is_there_once_it_was_added_and_not_before(tmp_path: Path) -> None:
    with recording(tmp_path, 7, ENTRIES) as arrivals:
        arrivals.add("model.safetensors", STRETCH_BYTES)
        found = read_arrived(tmp_path)
        assert found is not None
        assert (found.folder, found.weights_version, found.files["model.safetensors"]) == (
            tmp_path, 7, 2 * STRETCH_BYTES + 5,
        )  # fmt: skip
        assert [found.has("model.safetensors", at) for at in (0, STRETCH_BYTES, 2 * STRETCH_BYTES)] == [
            False, True, False,
        ]  # fmt: skip
        assert found.has("model.safetensors", 2 * STRETCH_BYTES - 1)
        assert not found.has("config.json", 0)
        assert not found.has("other.json", 0)
        assert not found.has("empty.txt", 0)


def test_beyond_the_end_of_a_file_nothing_is_there(tmp_path: Path) -> None:
    with recording(tmp_path, 7, ENTRIES[:1]) as arrivals:
        arrivals.add("config.json", 0)
        found = read_arrived(tmp_path)
        assert found is not None
        assert found.has("config.json", 9)
        assert not found.has("config.json", 10)
        assert not found.has("config.json", 5 * STRETCH_BYTES)


def test_it_is_complete_once_all_came_and_gone_afterwards(tmp_path: Path) -> None:
    with recording(tmp_path, 7, ENTRIES) as arrivals:
        arrivals.add("config.json", 0)
        for at in range(3):
            assert not arrivals.is_complete()
            arrivals.add("model.safetensors", at * STRETCH_BYTES)
        assert arrivals.is_complete()
    assert list(tmp_path.iterdir()) == []
    assert read_arrived(tmp_path) is None


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[]\n", b"{\n", b'{"weights_version": 1, "files": {"a.txt": 9}}\n', b'{"files": 3}\n\1', b"\xff\n"],
)
def test_what_is_no_record_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / ARRIVALS_NAME).write_bytes(content)
    assert read_arrived(tmp_path) is None
