import asyncio
import logging
import os
import shutil
from pathlib import Path

import pytest

from dcpo_async.transport.admission import FILES_SECONDS, AdmittedFolder
from tests.transport.keys import admit, learner_keys


class Watched:
    """A folder of admitted keys, and a clock that only a test moves."""

    def __init__(self, keys: Path) -> None:
        self.now, self.folder = 100.0, keys / "admitted"
        self.admission = AdmittedFolder(self.folder, lambda: self.now)

    def names(self, after_seconds: float = 1.0) -> list[str]:
        """Who is admitted a second later."""
        self.now += after_seconds
        self.admission.look()
        return [holder.name for holder in self.admission.holders]


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return learner_keys(tmp_path / "keys")


def test_who_comes_and_goes_is_seen_within_a_second_and_told_once(keys: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    one = admit(keys, "one")
    watched = Watched(keys)
    assert watched.names() == ["one"]
    two = admit(keys, "two")
    assert watched.names() == ["one", "two"]
    (watched.folder / "one.key").unlink()
    assert watched.names() == watched.names() == ["two"]
    assert caplog.messages == ["admitted from now on: two", "no longer admitted: one"]
    assert watched.admission.holder_of(one.public.decode()) is None
    assert watched.admission.described(one.public.decode()) == "the key of one is revoked"
    holder = watched.admission.holder_of(two.public.decode())
    assert holder is not None
    assert (holder.name, holder.role) == ("two", "actor")
    assert watched.admission.described("z" * 40) == "key zzzzzzzz… is not admitted"


def test_the_folder_is_looked_at_no_more_than_once_a_second(keys: Path) -> None:
    watched = Watched(keys)
    admit(keys, "one")
    watched.now += 0.9
    watched.admission.look()
    assert watched.admission.holders == []
    assert watched.names() == ["one"]


def test_a_file_that_is_moved_away_and_back_is_revoked_and_admitted_again(keys: Path, tmp_path: Path) -> None:
    admit(keys, "one")
    watched = Watched(keys)
    shutil.move(watched.folder / "one.key", tmp_path)
    assert watched.names() == []
    shutil.move(tmp_path / "one.key", watched.folder)
    assert watched.names() == ["one"]


def test_another_role_in_the_same_file_is_another_holder(keys: Path) -> None:
    admit(keys, "one")
    watched = Watched(keys)
    version, path = watched.admission.version, watched.folder / "one.key"
    path.write_text(path.read_text().replace("actor", "evaluator"))
    assert watched.names(10.0) == ["one"]
    assert watched.admission.holders[0].role == "evaluator"
    assert watched.admission.version == version + 1


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "holds no key"),
        ('role = "actor"\npublic = "short"\n', "holds no key"),
        (f'role = "king"\npublic = "{"k" * 40}"\n', "the role king is none of actor, evaluator"),
        (f'role = "actor"\npublic = "{"k" * 40}"\nsecret = "{"k" * 40}"\n', "holds no key"),
        ("\x1b[2J", "holds no key"),
    ],
)
def test_a_file_that_cannot_be_understood_admits_nobody_and_is_told_once(
    keys: Path, caplog: pytest.LogCaptureFixture, text: str, problem: str
) -> None:
    admit(keys, "one")
    watched = Watched(keys)
    (watched.folder / "bad.key").write_text(text)
    assert watched.names() == watched.names() == ["one"]
    [line] = caplog.messages
    assert line.endswith("; nobody is admitted by it")
    assert problem in line


def test_what_is_no_key_file_is_not_looked_at(keys: Path, caplog: pytest.LogCaptureFixture) -> None:
    watched = Watched(keys)
    (watched.folder / "README").write_text("who is who")
    assert watched.names() == []
    assert caplog.messages == []


def test_a_folder_that_is_gone_admits_nobody(keys: Path) -> None:
    admit(keys, "one")
    watched = Watched(keys)
    shutil.rmtree(watched.folder)
    assert watched.names() == []


def test_two_names_for_one_key_are_one_holder_and_an_error_in_the_log(
    keys: Path, caplog: pytest.LogCaptureFixture
) -> None:
    admit(keys, "one")
    watched = Watched(keys)
    shutil.copy(watched.folder / "one.key", watched.folder / "two.key")
    assert watched.names() == ["one"]
    assert caplog.messages == ["one and two have one key: the first name holds"]


async def test_a_disk_that_hangs_holds_up_nobody(keys: Path) -> None:
    admit(keys, "one")
    watched = Watched(keys)
    slow = watched.folder / "slow.key"
    # Whoever opens it waits for a writer.
    os.mkfifo(slow)
    watched.now += FILES_SECONDS
    watching, asking = asyncio.create_task(watched.admission.watch()), asyncio.create_task(watched.admission.ask())
    for _ in range(20):
        await asyncio.sleep(0.01)
    assert [holder.name for holder in watched.admission.holders] == ["one"]
    assert not asking.done()
    await asyncio.to_thread(slow.write_text, "role = 'actor'\npublic = 'x'\n")
    await asking
    watching.cancel()
