"""What walks through a page: it does the commands in their terminals, and fails where the page promises too much."""

import os
from pathlib import Path

import pytest

from tests.system.walks import Walk, blocks


def walk(folder: Path, page: str) -> None:
    with Walk(folder / "walk", dict(os.environ), {"PORT": "4711"}) as walked:
        walked.go(blocks(page), seconds=20)


def console(*lines: str, title: str = "") -> str:
    head = f'```console title="{title}"' if title else "```console"
    return "\n".join([head, *lines, "```\n"])


def test_a_terminal_keeps_folder_environment_and_exit_code(tmp_path: Path) -> None:
    walk(tmp_path, console("$ mkdir here", "$ cd here", "$ export A='b c'", "$ pwd", "…walk/here", "$ echo $A", "b c"))
    (tmp_path / "other").mkdir()
    walk(tmp_path / "other", console("$ export A=b", "$ false", "$ echo $?", "1", "$ true", "$ echo $?", "0"))


def test_terminals_have_folders_and_environments_of_their_own(tmp_path: Path) -> None:
    walk(
        tmp_path,
        console("$ export A=first") + console("$ echo .$A.", "..", title="second") + console("$ echo $A", "first"),
    )


def test_a_command_goes_on_while_another_terminal_works(tmp_path: Path) -> None:
    waits = console("$ echo begun; until [ -e file ]; do sleep 0.1; done; echo seen", "begun", title="second")
    walk(tmp_path, waits + console("$ touch file") + console("seen", title="second"))


def test_files_of_a_page_are_written_and_words_are_replaced(tmp_path: Path) -> None:
    page = '```python title="said.py"\nprint("at PORT")\n```\n' + console("$ python3 said.py", "at PORT")
    walk(tmp_path, page)
    assert (tmp_path / "walk" / "said.py").read_text() == 'print("at 4711")\n'


def test_an_interrupt_ends_what_would_go_on(tmp_path: Path) -> None:
    walk(tmp_path, console("$ echo up; exec sleep 1000", "up", "^C", "$ echo next", "next"))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["$ echo one", "two"], "does not show 'two'"),
        (["$ printf 'one\\ntwo\\n'", "two", "one"], "does not show 'one'"),
        (["$ false"], "exit code 1"),
        (["$ false", "$ echo later"], "exit code 1"),
        (["$ false", "$ echo $?", "0"], "does not show '0'"),
    ],
)
def test_a_page_that_promises_what_does_not_come_fails(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        walk(tmp_path, console(*lines))
